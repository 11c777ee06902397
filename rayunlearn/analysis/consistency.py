"""Whether the tables of a run fit each other: what no digest of a file can say.

Each function gives the rows that do not fit; an empty frame is a run that does.
"""

import polars as pl

from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.schema import PER_TRIAL, STATUSES
from rayunlearn.storage.run import Run

MEAN_KEYS = ("trial_id", "stage", "attack", "split", "metric")


# of a mean whose terms are added in another order
RELATIVE_TOLERANCE = 1e-12


def means_apart(run: Run) -> pl.DataFrame:
    """Rows of `evals` that are not the mean, the number and the standard error of their rows of
    `examples`, with those of the examples beside them (`value_examples`, ...). Metrics of a whole
    corpus have no examples and are not looked at.
    """
    means = summarise_examples(run.examples.collect())
    rows = run.evals.collect().join(
        means, on=list(MEAN_KEYS), how="inner", suffix="_examples", nulls_equal=True
    )
    same = [_close(name) for name in ("value", "stderr")]
    return rows.filter(~pl.all_horizontal(pl.col("n") == pl.col("n_examples"), *same))


def examples_without_mean(run: Run) -> pl.DataFrame:
    """What was asked of documents (`MEAN_KEYS`) and has no row in `evals`."""
    keys = run.examples.select(MEAN_KEYS).unique(maintain_order=True)
    return keys.join(run.evals, on=list(MEAN_KEYS), how="anti", nulls_equal=True).collect()


def trials_doubled(run: Run) -> pl.DataFrame:
    """Trials that have more than one row in `trials`."""
    return run.trials.group_by("trial_id").len().filter(pl.col("len") > 1).collect()


def statuses_unknown(run: Run) -> pl.DataFrame:
    """Trials whose status is none."""
    is_known = pl.col("status").is_in(list(STATUSES))
    return (
        run.trials.filter(~is_known.fill_null(value=False)).select("trial_id", "status").collect()
    )


def rows_of_no_trial(run: Run) -> pl.DataFrame:
    """Table and number of its rows whose trial is not in `trials`."""
    trials = run.trials.select("trial_id")
    counts = {
        table: getattr(run, table).join(trials, on="trial_id", how="anti").select(pl.len())
        for table in PER_TRIAL[1:]
    }
    rows = [(table, frame.collect().item()) for table, frame in counts.items()]
    frame = pl.DataFrame(rows, schema={"table": pl.String, "rows": pl.Int64}, orient="row")
    return frame.filter(pl.col("rows") > 0)


def _close(name: str) -> pl.Expr:
    """Whether a column and that of the examples are the same number, or both none."""
    ours, theirs = pl.col(name), pl.col(f"{name}_examples")
    apart = (ours - theirs).abs() > RELATIVE_TOLERANCE * pl.max_horizontal(ours.abs(), theirs.abs())
    both_nan = ours.is_nan() & theirs.is_nan()
    infinite = ours.is_infinite() & (ours == theirs)
    present = ours.is_null() == theirs.is_null()
    return present & (~apart | both_nan | infinite).fill_null(value=True)
