"""A trial that has ended, read back from its run: the config value it was, and where its data and
models are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn.config import Trial, from_flat
from rayunlearn.errors import UserError, require
from rayunlearn.schema import column_names
from rayunlearn.storage.run import find_trial, open_run
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.workspace import Workspace, prepare_models, validate_trial

# a failed trial may have none, and those of a diverged one are not numbers
WITH_WEIGHTS = ("complete", "collapsed")


@dataclass(frozen=True, kw_only=True)
class LoadedTrial:
    """An ended trial: its id, its config, its workspace with the models in place, and its row of
    `trials`.
    """

    trial_id: str
    trial: Trial
    workspace: Workspace
    row: dict[str, Any]


def load_trial(
    run: Path,
    prefix: str,
    *,
    progress: Callable[[str, int, int], None] = lambda _role, _done, _steps: None,
    roles: Sequence[str] = ("base", "gold"),
) -> LoadedTrial:
    """The trial of the run folder whose id is `wanted` or begins with it.

    The models that its run cached (`cache`, two folders above the run) are used; those of `roles`
    that are gone are trained again under `progress`. Raises UserError for an id that is unknown or
    not unique, for a trial without weights, and where data, starting weights or settings are no
    longer what they were: another model would come out.
    """
    opened = open_run(run)
    trial_id = find_trial(opened.trials.select("trial_id").collect()["trial_id"].to_list(), prefix)
    row = opened.trials.filter(pl.col("trial_id") == trial_id).collect().row(0, named=True)
    require(
        row["status"] in WITH_WEIGHTS,
        f"a trial must have ended as {' or '.join(WITH_WEIGHTS)} to have weights; {trial_id} is",
        row["status"],
    )
    documented = column_names("trials")
    trial = _validated({name: value for name, value in row.items() if name not in documented})
    if (now := identify_trial(trial)) != trial_id:
        reason = (
            "its data or the weights it started from changed, or it was run under a version with"
            " other settings"
        )
        raise UserError(
            f"trial {trial_id} can no longer be repeated: {reason} (the same settings give {now}"
            " here)"
        )
    return LoadedTrial(
        trial_id=trial_id,
        trial=trial,
        workspace=prepare_models(trial, cache_of(run), progress, roles),
        row=row,
    )


def _validated(settings: Mapping[str, Any]) -> Trial:
    """The trial of these settings. Raises UserError for a name that there is not, which may be of
    a plugin.
    """
    try:
        return validate_trial(from_flat(settings))
    except UserError as error:
        if not str(error).startswith("unknown "):
            raise
        raise UserError(
            f"{error}; where the run's experiment file or a file of its PLUGINS brought it, name"
            " that file with --plugin FILE"
        ) from error


def cache_of(run: Path) -> Path:
    """Where the sweep that wrote `<output>/<experiment>/<version>` keeps its models:
    `<output>/cache`.
    """
    return run.resolve().parents[1] / "cache"
