"""Finished trials whose functions have other source by now."""

import json
from pathlib import Path

from rayunlearn.config import Trial, flatten
from rayunlearn.planning.changed_code import (
    changed_line,
    changed_trials,
    remove_trial_folders,
)
from rayunlearn.planning.planner import Agenda, PlannedTrial
from rayunlearn.storage.code_identity import definition_digest
from rayunlearn.storage.run import status_of, write_trial

NPO = (Path(__file__).parents[2] / "rayunlearn" / "methods" / "forget.py").read_text("utf-8")


def agenda_of(*trial_ids: str) -> Agenda:
    rows = tuple(
        PlannedTrial(trial_id=name, trial=Trial(), role="grid", group="", tuning="none")
        for name in trial_ids
    )
    return Agenda(rows=rows, ready=(), waiting=0)


def write(run: Path, trial_id: str, code: dict[str, str] | None) -> None:
    row = {"status": "complete", "code": None if code is None else json.dumps(code)}
    write_trial(run, trial_id, {"trials": [row]}, flatten(Trial()))


def test_a_trial_made_by_other_source_is_named_with_the_function(tmp_path: Path) -> None:
    """One by other code, one by the same, one from before it was noted, one that has not run, and
    one that used a function less.
    """
    now = {"npo": "new", "nll": "same"}
    write(tmp_path, "aa", {"npo": "old", "nll": "same"})
    write(tmp_path, "bb", now)
    write(tmp_path, "cc", None)
    write(tmp_path, "ee", {"nll": "same"})
    agenda = agenda_of("aa", "bb", "cc", "dd", "ee")
    changed = changed_trials(tmp_path, agenda, lambda trial: now)
    assert changed == {"aa": ("npo",)}
    assert "1 finished trials were made by other source code of npo; to run them again" in (
        changed_line(changed, again=False)
    )
    assert changed_line({}, again=True) == ""
    remove_trial_folders(tmp_path, changed)
    assert status_of(tmp_path, "aa") == "" and status_of(tmp_path, "bb") == "complete"


def test_a_run_that_has_not_begun_has_none(tmp_path: Path) -> None:
    assert changed_trials(tmp_path, agenda_of("aa"), lambda trial: {"npo": "x"}) == {}


def test_the_digest_of_a_loss_follows_its_source_and_that_of_its_family() -> None:
    """Turn its sign, and what it imports from a module beside it is part of it; another loss of the
    file is not.
    """
    digest = definition_digest(NPO, "npo", family="rayunlearn.methods")
    turned = NPO.replace("def npo(", "def npo(extra, ")
    assert definition_digest(turned, "npo", family="rayunlearn.methods") != digest
    other = NPO.replace("def simnpo(", "def simnpo(extra, ")
    assert definition_digest(other, "npo", family="rayunlearn.methods") == digest
    plain = definition_digest("from rayunlearn.methods.retain import kl\nf = lambda: kl", "f")
    source = "from rayunlearn.methods.retain import kl\nf = lambda: kl"
    assert definition_digest(source, "f", family="rayunlearn.methods") != plain
