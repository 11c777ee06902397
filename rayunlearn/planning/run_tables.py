"""The run folder from the driver's side: one driver at a time, and what it writes beside the
trials.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayunlearn.experiment import Experiment, settings
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.retain import RETAIN
from rayunlearn.planning.planner import Agenda
from rayunlearn.selectors.table import SELECTORS
from rayunlearn.storage.artifact_cache import MANIFEST, TABLE, defect, entries
from rayunlearn.storage.run import write_experiment, write_run_frame, write_run_table
from rayunlearn.storage.sync import download_files


def run_folder(output: Path, experiment: Experiment) -> Path:
    """Where the experiment's version lives."""
    return output / experiment.name / experiment.version


def write_settings(
    run: Path,
    experiment: Experiment,
    agenda: Agenda,
    metrics: Mapping[str, Any],
    *,
    corpus_notes: Sequence[str] = (),
    seconds_used: float = 0.0,
) -> None:
    """Write experiment.json: what the report needs to know of the experiment. `corpus_notes` say
    what of the data was ignored, cut or filtered; `seconds_used`: what all calls took so far.
    """
    described = [_described(name, metric) for name, metric in metrics.items()]
    write_experiment(
        run,
        settings(experiment)
        | {
            "planned": agenda.total,
            "metrics": described,
            "names": _names_explained(agenda),
            "seconds_used": seconds_used,
            "notes": [*corpus_notes, *agenda.notes],
            "private": experiment.base.data.private,
        },
    )


def write_corpora(run: Path, cache: Path, workspaces: Iterable[Any]) -> None:
    """Write corpora.parquet (files and their digests), quarantine.parquet (documents rejected) and
    scores.parquet (selector scores).
    """
    spaces = list(workspaces)
    read = {space.corpus.digest: space.corpus for space in spaces}
    files = [row for digest, corpus in read.items() for row in _files_of(digest, corpus)]
    write_run_table(run, "corpora", files)
    rejected = dict.fromkeys(document for space in spaces for document in space.corpus.rejected)
    write_run_table(run, "quarantine", [vars(document) for document in rejected])
    digests = {(space.corpus.digest, space.base_digest) for space in spaces}
    scores = cache / "scores"
    for suffix in (TABLE.suffix, MANIFEST):
        download_files(scores, suffix)
    frame = _scores(scores, digests)
    if frame is not None:
        write_run_frame(run, "scores", frame)


def _files_of(digest: str, corpus: Any) -> list[dict[str, Any]]:
    columns = {"corpus_digest": digest, "corpus": corpus.name}
    return [
        columns | {"file": f.table, "rows": f.rows, "sha256": f.sha256, "state": f.state}
        for f in corpus.files
    ]


def _described(name: str, metric: Any) -> dict[str, Any]:
    bounds = {
        side: value if abs(value) != float("inf") else None
        for side, value in (("low", metric.low), ("high", metric.high))
    }
    return {
        "name": name,
        "unit": metric.unit,
        "direction": metric.direction,
        "meaning": metric.title,
        "chance": metric.chance,
        "compares": metric.compares,
        **bounds,
    }


def _names_explained(agenda: Agenda) -> list[dict[str, str]]:
    """What every loss and selector of the plan is, in a few words, and where it comes from, so that
    a report can say it without the package's tables.
    """
    tables: Mapping[str, Mapping[str, Any]] = {
        "method.forget": FORGET,
        "method.retain": RETAIN,
        "select.name": SELECTORS,
    }
    used = dict.fromkeys(
        (setting, str(value))
        for row in (*agenda.rows, *agenda.expected)
        for setting, value in (
            ("method.forget", row.trial.method.forget),
            ("method.retain", row.trial.method.retain),
            ("select.name", row.trial.select.name),
        )
    )
    return [
        {
            "setting": setting,
            "name": name,
            "meaning": tables[setting][name].title,
            "source": tables[setting][name].source,
        }
        for setting, name in used
        if name in tables[setting] and name != "none"
    ]


def _scores(folder: Path, digests: set[tuple[str, str]]) -> Any:
    import polars as pl

    # what is damaged is rebuilt by the next trial that wants it
    files = [file for file in entries(folder) if not defect(file)] if folder.is_dir() else []
    if not files:
        return None
    corpora, models = [pair[0] for pair in digests], [pair[1] for pair in digests]
    is_of_run = pl.col("corpus_digest").is_in(corpora) & pl.col("model_digest").is_in([*models, ""])
    rows = pl.concat([TABLE.read(file).filter(is_of_run) for file in files])
    return rows.unique(maintain_order=True)
