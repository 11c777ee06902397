"""Finished trials whose functions have other source by now: they are told, and run again on
request.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from rayunlearn.config import Trial
from rayunlearn.planning.planner import Agenda
from rayunlearn.storage.run import drop_trial, scan_trials

CodeOf = Callable[[Trial], Mapping[str, str]]


def no_code(_trial: Trial) -> Mapping[str, str]:
    """Of a trial that uses no function nothing is known."""
    return {}


def changed_trials(run: Path, agenda: Agenda, code_of: CodeOf) -> dict[str, tuple[str, ...]]:
    """Trials of the agenda that have rows in the run and were made by other code -> the names of
    the functions whose source differs. Rows of versions that did not note it are not among them.
    """
    if not (run / "trials").exists() and not (run / "tables").exists():
        return {}
    recorded = scan_trials(run)["trials"].select("trial_id", "code").drop_nulls().collect()
    earlier = {trial_id: json.loads(code) for trial_id, code in recorded.iter_rows()}
    changed = {}
    for row in agenda.rows:
        if row.trial_id not in earlier:
            continue
        before, now = earlier[row.trial_id], code_of(row.trial)
        names = tuple(name for name in sorted(now) if before.get(name, now[name]) != now[name])
        if names:
            changed[row.trial_id] = names
    return changed


def changed_line(changed: Mapping[str, tuple[str, ...]], *, again: bool) -> str:
    """What is said of them; '' where there are none."""
    if not changed:
        return ""
    names = ", ".join(sorted({name for names in changed.values() for name in names}))
    what = f"{len(changed)} finished trials were made by other source code of {names}"
    return f"{what}; they run again" if again else f"{what}; to run them again: --rerun-changed"


def remove_trial_folders(run: Path, trial_ids: Mapping[str, object]) -> None:
    """Remove the folders of these trials. Rows that were compacted stay until the new ones are
    there, which win over them.
    """
    for trial_id in trial_ids:
        if (folder := run / "trials" / trial_id).exists():
            drop_trial(run, folder)
