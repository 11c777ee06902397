"""`evals` rebuilt from the rows that it is the mean of."""

from collections.abc import Mapping

import polars as pl

from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.metrics.corpus import GOLD_METRICS, corpus_rows
from rayunlearn.schema import TABLES, column_names
from rayunlearn.storage.parquet import data_type


def evals_again(tables: Mapping[str, pl.LazyFrame]) -> pl.DataFrame:
    """Rows of `evals`, trial by trial, from `trials`, `examples` and `curves` of a run.

    Means are those of the examples; metrics of the whole corpus are computed as a trial does, with
    the examples of the run's gold trial instead of gold's. Where the run has no gold trial of
    a corpus, their rows are not what the trial wrote: the caller knows how many were.
    """
    examples = tables["examples"].collect()
    trials = tables["trials"].collect()
    means = summarise_examples(examples)
    gold = {
        (row["corpus_digest"], row["model_digest"]): row["trial_id"]
        for row in trials.iter_rows(named=True)
        if row["stage"] == "gold"
    }
    parts = [means.lazy()]
    for row in trials.iter_rows(named=True):
        if row.get("attack.name", "none") in (None, "none"):
            of_gold = gold.get((row["corpus_digest"], row["model_digest"]))
            parts += _whole_corpus(examples, row["trial_id"], of_gold)
    rows = pl.concat(parts, how="diagonal_relaxed").collect()
    order = trials.select("trial_id", pl.int_range(pl.len()).alias("_order"), "optimizer_steps")
    curves = tables["curves"].filter(pl.col("kind") == "relearning")
    last = (
        curves.group_by("trial_id").agg(pl.col("x").max().cast(pl.Int64).alias("_last")).collect()
    )
    placed = rows.join(order, on="trial_id", maintain_order="left").join(
        last, on="trial_id", how="left", maintain_order="left"
    )
    step = pl.coalesce("_last", "optimizer_steps", pl.lit(0, dtype=pl.Int64))
    # what only tasks of a harness have is in no example
    absent = [
        pl.lit(None, dtype=data_type(column.kind)).alias(column.name)
        for column in TABLES["evals"]
        if column.name not in (*placed.columns, "step")
    ]
    return (
        placed.with_columns(step.alias("step"), *absent)
        .sort("_order", maintain_order=True)
        .select(column_names("evals"))
    )


def _whole_corpus(examples: pl.DataFrame, trial_id: str, gold: str | None) -> list[pl.LazyFrame]:
    """Rows of corpus metrics of every stage of a trial."""
    own = examples.filter(pl.col("trial_id") == trial_id, pl.col("attack") == "none")
    reference = None
    if gold is not None:
        reference = examples.filter(
            pl.col("trial_id") == gold,
            pl.col("attack") == "none",
            pl.col("metric").is_in(GOLD_METRICS),
        )
    frames = []
    for stage in own["stage"].unique(maintain_order=True):
        rows = corpus_rows(own.filter(pl.col("stage") == stage), reference)
        keys = {"trial_id": trial_id, "stage": stage, "attack": "none"}
        if rows:
            frames.append(pl.DataFrame([keys | row for row in rows]).lazy())
    return frames
