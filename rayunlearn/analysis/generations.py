"""What models wrote, before and after unlearning and by gold, document by document.

From rows of `generations` alone. Whether others may read them is `is_private`: reports ask it.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from rayunlearn.analysis.run_frames import objective_of
from rayunlearn.storage.run import Run

# what makes a text one and the same text of several models
TEXT_KEYS = ("split", "doc_id", "input", "number")
# settings by which base and gold are those of a trial: what is asked, and of which weights
SAME_QUESTIONS = ("corpus_digest", "model_digest", "data.template", "data.max_tokens")
MODELS = ("before", "after", "gold")
DETAILS = ("generated", "verdict", "value")

TEXT_TABLE_SCHEMA: Mapping[str, Any] = {
    "split": pl.String,
    "doc_id": pl.String,
    "input": pl.String,
    "number": pl.Int64,
    "prompt": pl.String,
    "reference": pl.String,
    "metric": pl.String,
    **{
        f"{detail}_{model}": pl.Float64 if detail == "value" else pl.String
        for model in MODELS
        for detail in DETAILS
    },
    "change": pl.Float64,
}


def is_private(run: Run) -> bool:
    """Whether the run is about a corpus that is marked private (`data.private`), by its experiment
    or by one of its trials: no page that leaves the run may have a text of it.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        True where it is.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> is_private(open_run("docs/notebooks/runs/coreset"))
        False
    """
    if run.experiment.get("private", False):
        return True
    if "data.private" not in run.trials.collect_schema().names():
        return False
    return bool(run.trials.select(pl.col("data.private").any()).collect().item())


def text_table(run: Run, trial_id: str) -> pl.DataFrame:
    """Texts of a trial's model, with those of base (`before`) and of gold beside them, the ones
    that changed most first.

    `metric` is the one by which `change` is measured, |after - before|: the objective's forgetting
    metric where it reads the text, else the first that reads it and says more or less knowledge.
    Null where base was not asked the same. Columns are `TEXT_TABLE_SCHEMA`'s.

    Args:
        run: an opened run (`storage.run.open_run`).
        trial_id: a whole trial id, an attack's too; the prompt is then what the attack made of it.

    Returns:
        One row per document and text; none where the trial's metrics read no text.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> text_table(open_run("docs/notebooks/runs/coreset"), "no trial").height
        0
    """
    trials = run.trials.filter(pl.col("trial_id") == trial_id).collect()
    if trials.is_empty():
        return pl.DataFrame(schema=TEXT_TABLE_SCHEMA)
    trial = trials.row(0, named=True)
    own = _texts_of(run, trial)
    if own.is_empty():
        return pl.DataFrame(schema=TEXT_TABLE_SCHEMA)
    table = own.with_columns(
        pl.col("metrics").map_elements(_metric_choice(run), return_dtype=pl.String).alias("metric")
    )
    models = {
        "before": trial if trial["stage"] == "base" else _anchor(run, trial, "base"),
        "after": trial,
        "gold": trial if trial["stage"] == "gold" else _anchor(run, trial, "gold"),
    }
    for model, row in models.items():
        table = _beside(run, table, model, row)
    change = (pl.col("value_after") - pl.col("value_before")).abs().alias("change")
    return (
        table.with_columns(change)
        .sort("change", *TEXT_KEYS, descending=[True, *[False] * len(TEXT_KEYS)], nulls_last=True)
        .select(list(TEXT_TABLE_SCHEMA))
    )


def _beside(
    run: Run, table: pl.DataFrame, model: str, trial: Mapping[str, Any] | None
) -> pl.DataFrame:
    """The table with what this model wrote, its verdict and its value of `metric`; nulls without
    the model.
    """
    names = {detail: f"{detail}_{model}" for detail in DETAILS}
    if trial is None:
        return table.with_columns(
            pl.lit(None, dtype=TEXT_TABLE_SCHEMA[name]).alias(name) for name in names.values()
        )
    texts = _texts_of(run, trial).select(*TEXT_KEYS, "generated", "verdict")
    values = _values_of(run, trial)
    keys = ["split", "doc_id", "metric"]
    return (
        table.drop("generated", "verdict", strict=False)
        .join(texts, on=list(TEXT_KEYS), how="left", maintain_order="left")
        .join(values, on=keys, how="left", maintain_order="left")
        .rename(names)
    )


def _texts_of(run: Run, trial: Mapping[str, Any]) -> pl.DataFrame:
    """Rows of `generations` of the model that the trial is about, no mixture and no other stage."""
    return run.generations.filter(*_own_rows(trial)).collect()


def _values_of(run: Run, trial: Mapping[str, Any]) -> pl.DataFrame:
    """Values of the same model, by split, document and metric."""
    rows = run.examples.filter(*_own_rows(trial)).collect()
    return rows.select("split", "doc_id", "metric", "value").unique(
        ["split", "doc_id", "metric"], keep="first", maintain_order=True
    )


def _own_rows(trial: Mapping[str, Any]) -> list[pl.Expr]:
    attack = trial.get("attack.name") or "none"
    return [
        pl.col("trial_id") == trial["trial_id"],
        pl.col("stage") == trial["stage"],
        pl.col("attack") == attack,
    ]


def _anchor(run: Run, trial: Mapping[str, Any], stage: str) -> dict[str, Any] | None:
    """The trial of base or gold that was asked the same as this one, without an attack; None where
    there is none.
    """
    columns = run.trials.collect_schema().names()
    same = [pl.col(n).eq_missing(pl.lit(trial[n])) for n in SAME_QUESTIONS if n in columns]
    plain = [pl.col("attack.name") == "none"] if "attack.name" in columns else []
    rows = run.trials.filter(
        pl.col("stage") == stage, pl.col("status") == "complete", *plain, *same
    ).collect()
    return rows.row(0, named=True) if rows.height else None


def _metric_choice(run: Run) -> Any:
    """From names of metrics to the one that says how much a text changed."""
    goal = objective_of(run.experiment).forgetting
    directed = {m["name"] for m in run.experiment.get("metrics", ()) if m.get("direction")}

    def choose(names: str) -> str:
        metrics = names.split(",")
        if goal in metrics:
            return goal
        return next((name for name in metrics if name in directed), metrics[0])

    return choose
