"""The figures of the report, drawn: each with a title, how to read it, and its pictures."""

from dataclasses import dataclass

import polars as pl

from rayunlearn.reporting import plots
from rayunlearn.reporting.svg import Drawing, draw
from rayunlearn.reporting.tuning_tables import importance_drawing, parallel_drawing
from rayunlearn.storage.run import Run

# title, and how to read it: what is across, what is up, what a line or mark is, what it would mean
CAPTIONS = {
    "coreset": (
        "Coreset curve",
        (
            "Across: the coreset as a share of the forget set, on a logarithmic scale. Up: what"
            " is left of the forget set after unlearning; lower is more forgotten, down to"
            " gold. A flat line means that a small part forgets as much as all of it. Bars: 95% t"
            " intervals over seeds and documents."
        ),
    ),
    "coverage": (
        "Coverage curve",
        (
            "The same cells, across by the share of facts that the coreset states. Lines that part"
            " in the coreset curve and meet here: coverage explains the ratio."
        ),
    ),
    "pareto": (
        "Forgetting against utility",
        (
            "Every measured trial: across what is left of the forget set, up what is kept of what"
            " should stay, one panel per kind of question that should stay. Up and towards gold is"
            " better. Grey line: the Pareto front. Hollow: asked for by Optuna."
            " Triangles: over-forgotten, below gold or chance. Crosses: collapsed."
        ),
    ),
    "path": (
        "On the straight line",
        (
            "Across: from one model to another in weight space, from base or from the full-set"
            " model of the same seed on the left to the trial's own on the right. Up: mean answer"
            " probability of the models between them, mean over seeds. A path that leaves the"
            " straight line between its ends on the bad side has a barrier."
        ),
    ),
    "training": (
        "Training curves",
        (
            "Across: optimizer steps. Up: the loss that the panel names. One trial (its first seed)"
            " per selector and part. Colour: coreset; dash: selector. A curve that is flat from"
            " the start trained nothing."
        ),
    ),
    "looks": (
        "While it unlearned",
        (
            "What each look at the same trials found, on up to 64 probes of a split: the forgetting"
            " metric on forget and the utility metric. Step 0 is base. Utility that falls before"
            " forgetting does is damage."
        ),
    ),
    "gradients": (
        "Gradients while it unlearned",
        (
            "Across: optimizer steps. Up: the G-effect of the same trials, as a cosine: of the"
            " forget loss's gradient with that of the NLL of forget and of retain documents. Below"
            " zero a step down the forget loss raises that NLL: wanted on forget, harm on retain."
        ),
    ),
    "layers": (
        "Block by block",
        (
            "A row per model, a column per block: how far a block's weights moved from base, in how"
            " many directions, and how far apart its activations of forget and retain probes stand."
            " Means over seeds."
        ),
    ),
    "recovery": (
        "What attacks recovered",
        (
            "A row per attack, a column per attacked model, its name below: the recovered fraction."
            " 0 is as unlearned, 1 as before unlearning; bright is bad. The intervals are in the"
            " table of attacks."
        ),
    ),
    "tuning": (
        "Tuning",
        (
            "Across: the settings that a search tried, in their order. Up: what it minimised. Grey"
            " line: the best so far that kept utility over the floor. A line that still falls at"
            " its end asks for a longer search."
        ),
    ),
    "parallel": (
        "Parallel coordinates of the search",
        (
            "A line per setting that was tried, through its hyperparameters down to what the search"
            " minimised and to utility; low values on the left of each axis. Lines that are ordered"
            " the same way on two axes go together; the thick line is the best that kept utility."
        ),
    ),
    "importance": (
        "Importance of hyperparameters",
        (
            "A bar per hyperparameter: the share of the rank variance of what was minimised that"
            " goes with it, from 0 to 1, and the p-value of that. A long bar with a large p is"
            " chance. What only matters together with another, or is best in the middle, has a"
            " short bar."
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the report: anchor, title, how to read it, and its pictures."""

    anchor: str
    title: str
    caption: str
    drawing: Drawing


def figures_of(run: Run, table: pl.DataFrame) -> list[Figure]:
    """The figures that have something to show, in the order of `CAPTIONS`.

    Args:
        run: an opened run (`storage.run.open_run`).
        table: `coreset_table(run)`.

    Returns:
        The figures, drawn.

    Example:
        >>> from rayunlearn.analysis.coreset_table import coreset_table
        >>> from rayunlearn.storage.run import open_run
        >>> run = open_run("docs/notebooks/runs/coreset")
        >>> [figure.anchor for figure in figures_of(run, coreset_table(run))][:2]
        ['coreset', 'coverage']
    """
    figures = {
        "coreset": plots.coreset_curve(table, run.experiment),
        "coverage": plots.coverage_curve(table, run.experiment),
        "pareto": plots.pareto(run),
        "path": plots.weight_paths(run),
        "training": plots.training_curves(run),
        "looks": plots.look_curves(run),
        "gradients": plots.gradient_curves(run),
        "layers": plots.layer_maps(run),
        "recovery": plots.recovery_map(run),
        "tuning": plots.tuning_history(run),
    }
    drawings = {
        anchor: draw(figure, name=anchor)
        for anchor, figure in figures.items()
        if figure is not None
    } | {
        anchor: drawing
        for anchor, drawing in (
            ("parallel", parallel_drawing(run)),
            ("importance", importance_drawing(run)),
        )
        if drawing is not None
    }
    return [
        Figure(anchor=anchor, title=title, caption=caption, drawing=drawings[anchor])
        for anchor, (title, caption) in CAPTIONS.items()
        if anchor in drawings
    ]
