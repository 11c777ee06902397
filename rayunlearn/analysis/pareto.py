"""The Pareto front of forgetting and utility, and the best value so far."""

import polars as pl


def pareto_front(
    frame: pl.DataFrame, forgetting: str, utility: str, *, lower_forgets: bool = True
) -> pl.DataFrame:
    """Rows that no other row beats: at least as forgotten and as useful, and better in one. Equal
    rows all stay.

    Forgetting is minimised (maximised with `lower_forgets` off), utility maximised. Rows with a
    null or NaN in either are dropped.

    Args:
        frame: one row per candidate.
        forgetting, utility: names of the two columns.
        lower_forgets: whether a lower `forgetting` is better.

    Returns:
        The rows of the front, in the order of the frame.

    Example:
        >>> cells = pl.DataFrame({"left": [0.1, 0.3, 0.3], "kept": [0.8, 0.9, 0.7]})
        >>> pareto_front(cells, "left", "kept").rows()
        [(0.1, 0.8), (0.3, 0.9)]
    """
    finite = frame.filter(pl.col(forgetting).is_finite() & pl.col(utility).is_finite())
    ordered = finite.sort(
        [forgetting, utility], descending=[not lower_forgets, True], maintain_order=True
    )
    best = ordered.group_by(forgetting, maintain_order=True).agg(
        pl.col(utility).max().alias("_here")
    )
    best = best.with_columns(pl.col("_here").cum_max().shift(1).alias("_before"))
    front = ordered.join(best, on=forgetting, how="left", maintain_order="left")
    beaten = (pl.col(utility) < pl.col("_here")) | (pl.col("_here") <= pl.col("_before")).fill_null(
        False
    )
    return front.filter(~beaten).drop("_here", "_before")


def best_so_far(
    frame: pl.DataFrame, *, order: str, value: str, feasible: str, lower_is_better: bool = True
) -> pl.DataFrame:
    """The frame in `order`, with `best_so_far`: the best `value` of the feasible rows up to here,
    null before the first.
    """
    counted = pl.when(pl.col(feasible)).then(pl.col(value))
    best = counted.cum_min() if lower_is_better else counted.cum_max()
    return frame.sort(order, maintain_order=True).with_columns(
        best.forward_fill().alias("best_so_far")
    )
