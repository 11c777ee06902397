"""What table `diagnostics` says of each cell of a run, block by block, from Parquet alone."""

import polars as pl

from rayunlearn.analysis.attribution import cells_of_trials
from rayunlearn.storage.run import Run

LAYER_MEASURES = {
    "relative_change": "share of the weights' length that changed",
    "spectral_norm": "largest singular value of the change",
    "stable_rank": "directions that carry the change",
    "separation": "distance of forget from retain activations, in units of their spread",
}
LAYER_SCHEMA = {
    "cell": pl.String,
    "layer": pl.Int64,
    **dict.fromkeys(LAYER_MEASURES, pl.Float64),
    "trials": pl.Int64,
}


def layer_table(run: Run) -> pl.DataFrame:
    """One row per cell (base, gold, controls, grid) and block, columns `LAYER_SCHEMA`: means over
    the cell's seeds of what was measured, null where nothing was.

    Args:
        run: an opened run (`storage.run.open_run`).

    Returns:
        The table, cells in the order of the report; no rows where no trial has diagnostics.
    """
    rows = run.diagnostics.collect()
    cells = cells_of_trials(run, rows.select("trial_id").unique())
    parts = [
        rows.filter(pl.col("trial_id").is_in(cell.trial_ids))
        .group_by("layer")
        .agg(
            *(pl.col(name).sort().mean() for name in LAYER_MEASURES),
            pl.col("trial_id").n_unique().cast(pl.Int64).alias("trials"),
        )
        .sort("layer")
        .select(pl.lit(cell.name).alias("cell"), *(n for n in LAYER_SCHEMA if n != "cell"))
        for cell in cells
    ]
    return pl.concat(parts) if parts else pl.DataFrame(schema=LAYER_SCHEMA)
