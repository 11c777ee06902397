"""What tasks of lm-evaluation-harness gave on models of a run. Polars."""

import polars as pl

from rayunlearn.storage.run import Run


def harness_table(run: Run) -> pl.DataFrame:
    """A row per task, asked model and metric: task, stage, evaluated (the trial whose model it is),
    trial_id (of the asking), status, error, metric, value, n, stderr, n_shot and harness_version.

    A task that failed has a row without a metric, with what went wrong. stderr is the harness's
    own, so an interval is value +- 1.96 stderr over the task's questions, and over nothing else.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The table, tasks in their order of names; no rows where nothing was asked.

    Example:
        >>> from rayunlearn.storage.run import open_run
        >>> harness_table(open_run("docs/notebooks/runs/coreset")).height
        0
    """
    measured = ("metric", "value", "n", "stderr", "n_shot", "harness_version")
    trials = run.trials.collect()
    if "harness.task" not in trials.columns:
        trials = trials.with_columns(pl.lit("").alias("harness.task"))
    trials = trials.filter(pl.col("harness.task").fill_null("") != "").select(
        pl.col("harness.task").alias("task"), "stage", "evaluated", "trial_id", "status", "error"
    )
    rows = run.evals.filter(pl.col("metric").str.starts_with("harness.")).select(
        "trial_id", *measured
    )
    return trials.join(rows.collect(), on="trial_id", how="left").sort(
        "task", "metric", "stage", "evaluated", maintain_order=True
    )
