"""The run folder from the driver's side: one driver at a time, and what it writes beside the
trials.
"""

import fcntl
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayunlearn.cluster.lease import leased
from rayunlearn.config import Trial
from rayunlearn.errors import UserError
from rayunlearn.experiment import Experiment, settings
from rayunlearn.plan import Agenda
from rayunlearn.results.mirror import fetch_all, pull, ready
from rayunlearn.results.store import (
    clean,
    forget_trials,
    send_unsent,
    write_experiment,
    write_frame,
    write_table,
)


def run_folder(output: Path, experiment: Experiment) -> Path:
    """Where the experiment's version lives."""
    return output / experiment.name / experiment.version


@contextmanager
def locked(run: Path) -> Iterator[Callable[[], None]]:
    """Hold the run for this process. The kernel lets go of the lock when the process ends, however
    it ends.

    A run under a URL is held on this machine and by a lease, and its folder is then as under the
    URL. Gives a function that raises UserError once the run is not ours any more: to be called
    before finished trials are moved. Raises UserError where another driver holds the run.
    """
    ready(run)
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(
                f"only one driver may work on a run; {run} is in use by"
                f" {file.read().strip() or 'another process'}"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        with leased(run, _machine(run)) as still_ours:
            send_unsent(run)
            pull(run)
            yield still_ours


def begin(run: Path, *, version: str) -> None:
    """Clear what a killed driver left half-written; version `dev` starts from nothing."""
    clean(run)
    if version == "dev":
        forget_trials(run)


def write_settings(
    run: Path, experiment: Experiment, agenda: Agenda, metrics: Mapping[str, Any]
) -> None:
    """Write experiment.json: what the report needs to know of the experiment."""
    described = [_described(name, metric) for name, metric in metrics.items()]
    write_experiment(
        run,
        settings(experiment)
        | {
            "planned": agenda.total,
            "metrics": described,
            "notes": list(agenda.notes),
        },
    )


def write_corpora(run: Path, cache: Path, workspaces: Iterable[Any]) -> None:
    """Write corpora.parquet (files and their digests), quarantine.parquet (documents set aside) and
    scores.parquet (selector scores).
    """
    spaces = list(workspaces)
    read = {space.corpus.digest: space.corpus for space in spaces}
    write_table(
        run / "corpora.parquet",
        "corpora",
        [row for digest, corpus in read.items() for row in _files_of(digest, corpus)],
    )
    rejected = dict.fromkeys(document for space in spaces for document in space.corpus.rejected)
    write_table(run / "quarantine.parquet", "quarantine", [vars(document) for document in rejected])
    digests = {(space.corpus.digest, space.base_digest) for space in spaces}
    fetch_all(cache / "scores", ".parquet")
    frame = _scores(cache / "scores", digests)
    if frame is not None:
        write_frame(run / "scores.parquet", frame)


def _files_of(digest: str, corpus: Any) -> list[dict[str, Any]]:
    place = {"corpus_digest": digest, "corpus": corpus.name}
    return [
        place | {"file": f.table, "rows": f.rows, "sha256": f.sha256, "state": f.state}
        for f in corpus.files
    ]


def commit_of(folder: Path) -> str:
    """Git commit of the working copy that holds `folder`, '+changes' where it is not clean, ''
    outside git.
    """
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + (
            "+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return ""


def pair_of(trial: Trial) -> tuple[object, ...]:
    """What trials share a workspace by: data and model."""
    return (trial.data, trial.model)


def _machine(run: Path) -> str:
    """A name for what the lock file of this folder covers, made once and kept in it."""
    note = run / ".machine"
    if not note.exists():
        note.write_text(f"{socket.gethostname()} {secrets.token_hex(8)}", encoding="utf-8")
    return note.read_text(encoding="utf-8")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.strip()


def _described(name: str, metric: Any) -> dict[str, Any]:
    bounds = {
        side: value if abs(value) != float("inf") else None
        for side, value in (("low", metric.low), ("high", metric.high))
    }
    return {
        "name": name,
        "unit": metric.unit,
        "direction": metric.direction,
        "meaning": metric.meaning,
        **bounds,
    }


def _scores(folder: Path, digests: set[tuple[str, str]]) -> Any:
    import polars as pl

    files = sorted(folder.glob("*.parquet"))
    if not files:
        return None
    corpora, models = [pair[0] for pair in digests], [pair[1] for pair in digests]
    mine = pl.col("corpus_digest").is_in(corpora) & pl.col("model_digest").is_in([*models, ""])
    return pl.concat([pl.read_parquet(file).filter(mine) for file in files])
