"""A run as a benchmark card: one small folder of settings, digests, means with intervals and the
environment, without documents and weights, that another group can hold against a card of theirs.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn.analysis.coreset_table import coreset_table, extra_settings, table_cells
from rayunlearn.analysis.intervals import bounds_of, interval_columns, mean_interval
from rayunlearn.analysis.recovery import recovery_table
from rayunlearn.analysis.run_frames import (
    examples_without_attacks,
    measured_of,
    planned_trials,
    trials_with_roles,
)
from rayunlearn.config import SEED_SETTINGS
from rayunlearn.errors import UserError, require
from rayunlearn.schema import VERSION
from rayunlearn.storage.artifact_cache import file_digest
from rayunlearn.storage.parquet import read_table_file, write_bytes, write_frame
from rayunlearn.storage.run import Run, open_run

# of the folder's form: another number where a reader of this one would misread it
FORMAT = 1
CARD_FILE = "card.json"
CARD_TABLES = ("cells", "means", "trials", "attacks")
# what identifies a cell, beside the settings that vary
CELL_KEYS = ("role", "method", "select.name", "select.ratio")

# a path from the root, where a text begins or after one of = , [ and blanks
ABSOLUTE_PATH = re.compile(r"(?<![^\s=,\[])/(?:[^/,\s]+/)*([^/,\s]+)")

README = """\
# Benchmark card: {name}, version {version}

{question}

Made by `rayunlearn card` from a run's Parquet files. `card.json` has settings, digests and the
environment; the tables are Parquet:

- `cells.parquet`: a row per cell (method, selector, ratio, what else varies), with the objective's
  measures and 95% intervals, as `rayunlearn report` shows them.
- `means.parquet`: every metric on every split by `cell` (a row number of `cells.parquet`): mean,
  95% interval and what it is over, seeds, documents.
- `trials.parquet`: the same by trial, with its seeds, so that differences can be computed.
- `attacks.parquet`: what attacks recovered; no rows where nothing was attacked.

Hold it against another card: `rayunlearn compare CARD CARD`.
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card as it was read: what card.json says, and its tables by name."""

    path: Path
    facts: dict[str, Any]
    tables: dict[str, pl.DataFrame]


def write_card(run: Path, output: Path) -> Path:
    """Write the card of a run to the new folder `output`; returns it.

    No document, no generated text and no weight is in a card, and every absolute path is cut to its
    last part; settings stand as they are, `token.words` among them. Raises UserError for an
    `output` that exists and for a run in which no trial of the plan has ended.
    """
    require(not output.exists(), "--output must be a folder that does not exist yet", str(output))
    opened = open_run(run).in_memory()
    require(planned_trials(opened).height > 0, "a card needs a run with ended trials", str(run))
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tables = card_tables(opened)
        for name, frame in tables.items():
            write_frame(temporary / f"{name}.parquet", frame)
        facts = without_folders(card_facts(opened)) | {
            "files": {
                f"{name}.parquet": {
                    "rows": frame.height,
                    "sha256": file_digest(temporary / f"{name}.parquet"),
                }
                for name, frame in tables.items()
            }
        }
        text = json.dumps(facts, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        write_bytes(temporary / CARD_FILE, text.encode())
        write_bytes(temporary / "README.md", README.format(**facts).encode())
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def read_card(path: Path) -> Card:
    """A card, each table held against its SHA-256 before it is read.

    Raises UserError for a folder that is no card, one of a newer format, and a file that is missing
    or not what was written.
    """
    file = path / CARD_FILE
    require(file.is_file(), f"a card must be a folder with {CARD_FILE}", str(path))
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} must be JSON: {error}") from error
    is_card = isinstance(facts, dict) and isinstance(facts.get("files"), dict)
    require(is_card, f"{file} must be what `rayunlearn card` writes", str(type(facts).__name__))
    require(facts.get("card") == FORMAT, f"{file} must be of format {FORMAT}", facts.get("card"))
    tables = {}
    for name in CARD_TABLES:
        table = path / f"{name}.parquet"
        expected = facts["files"].get(table.name, {}).get("sha256")
        content = file_digest(table) if table.is_file() else "no file"
        rule = f"{table} must be what was written, SHA-256 {expected}"
        require(content == expected, rule, content)
        tables[name] = read_table_file(table, pl.read_parquet)
    return Card(path=path, facts=facts, tables=tables)


def card_facts(run: Run) -> dict[str, Any]:
    """What card.json says, without the list of files."""
    trials, experiment = planned_trials(run), run.experiment
    compared = trials.filter(pl.col("stage") == "unlearned")
    searched = list(experiment.get("search", {}))
    varying = _varying(compared)
    return {
        "card": FORMAT,
        "schema": VERSION,
        "rayunlearn": version("rayunlearn"),
        "name": experiment.get("name", run.path.name),
        "version": experiment.get("version", ""),
        "question": " ".join(str(experiment.get("question", "")).split()),
        "objective": experiment.get("objective", {}),
        "budget": experiment.get("budget", {}),
        "metrics": experiment.get("metrics", []),
        "notes": experiment.get("notes", []),
        "settings": _constant(compared, varying),
        "varying": varying,
        "searched": searched,
        "seeds": {name: _values(compared, name) for name in SEED_SETTINGS},
        "corpora": _values(trials, "corpus_digest"),
        "models": _values(trials, "model_digest"),
        "trials": dict(sorted(trials["status"].value_counts().iter_rows())),
        "made_with": {name: _values(trials, name) for name in ("commit", "hardware", "packages")},
    }


def card_tables(run: Run) -> dict[str, pl.DataFrame]:
    """The tables of CARD_TABLES."""
    cells, members = coreset_table(run), table_cells(run)["trial_ids"].to_list()
    return {
        "cells": _named_alone(cells.drop("group", "tuning")).with_row_index("cell"),
        "means": _means(run, members),
        "trials": _trial_means(run, members),
        "attacks": _named_alone(recovery_table(run)),
    }


def cell_keys(card: Card) -> list[str]:
    """Columns of the table `cells` that name a cell."""
    return [*CELL_KEYS, *extra_settings(card.tables["cells"])]


def _means(run: Run, members: Sequence[Sequence[str]]) -> pl.DataFrame:
    """Every metric on every split, by cell, with its interval."""
    examples = examples_without_attacks(run).collect()
    rows = [
        {"cell": cell, "split": split, "metric": metric, "over": interval.over}
        | interval_columns("mean", interval)
        | {"seeds": measured.n_measured(trials), "documents": len(measured.documents)}
        for (split, metric), part in examples.group_by(["split", "metric"])
        for measured in [measured_of(part)]
        for cell, trials in enumerate(members)
        if measured.n_measured(trials)
        for interval in [
            mean_interval(
                measured.rows(trials),
                groups=measured.groups,
                bounds=bounds_of(run.experiment, str(metric)),
            )
        ]
    ]
    schema = {"cell": pl.UInt32, "split": pl.String, "metric": pl.String, "over": pl.String}
    schema |= dict.fromkeys(("mean", "mean_low", "mean_high"), pl.Float64)
    schema |= dict.fromkeys(("seeds", "documents"), pl.Int64)
    return pl.DataFrame(rows, schema=schema).sort("cell", "split", "metric")


def _trial_means(run: Run, members: Sequence[Sequence[str]]) -> pl.DataFrame:
    """Rows of `evals` of each cell's trials, with their seeds: all stages and attacks."""
    pairs = [(cell, trial) for cell, trials in enumerate(members) for trial in trials]
    placed = pl.DataFrame(pairs, schema={"cell": pl.UInt32, "trial_id": pl.String}, orient="row")
    seeds = [name for name in SEED_SETTINGS if name in run.trials.collect_schema().names()]
    return (
        placed.join(trials_with_roles(run).select("trial_id", *seeds).unique(), on="trial_id")
        .join(run.evals.collect(), on="trial_id")
        .sort("cell", "trial_id", "stage", "attack", "split", "metric")
    )


def _varying(trials: pl.DataFrame) -> list[str]:
    """Settings that differ between the trials, seeds left out."""
    return [
        name
        for name in trials.columns
        if "." in name and name not in SEED_SETTINGS and trials[name].n_unique() > 1
    ]


def _constant(trials: pl.DataFrame, varying: Sequence[str]) -> dict[str, Any]:
    """Settings that all trials share, without those that none has."""
    shared = {
        name: trials[name][0]
        for name in trials.columns
        if "." in name and name not in varying and name not in SEED_SETTINGS and trials.height
    }
    return {name: value for name, value in shared.items() if value is not None}


def without_folders(value: Any) -> Any:
    """A value with every absolute path in its texts, and in those of its parts, cut to its last
    part: where a file was says something of a machine and nothing of a result.

    Example:
        >>> without_folders({"data.probes": "near=/home/me/near.jsonl,far=far.jsonl"})
        {'data.probes': 'near=near.jsonl,far=far.jsonl'}
    """
    if isinstance(value, str):
        return ABSOLUTE_PATH.sub(r"\1", value)
    if isinstance(value, Mapping):
        return {name: without_folders(part) for name, part in value.items()}
    return [without_folders(part) for part in value] if isinstance(value, list) else value


def _named_alone(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with `without_folders` of its texts."""
    return frame.with_columns(
        pl.col(pl.String).map_elements(without_folders, return_dtype=pl.String)
    )


def _values(trials: pl.DataFrame, name: str) -> list[Any]:
    return trials[name].drop_nulls().unique().sort().to_list() if name in trials.columns else []
