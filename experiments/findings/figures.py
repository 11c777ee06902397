"""One picture per finding, as SVG beside docs/findings.md: curves with intervals, or one row per
arm with its interval.

Drawn by matplotlib without a screen; the same rows give the same file. A picture says nothing that
the section's rows do not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import polars as pl

from experiments.findings.by_split import GENERAL, arm_label, split_table
from experiments.findings.verdicts import length_curves, residual_after_attack, unlearned_shares
from rayunlearn.analysis.attribution import emphasis_table
from rayunlearn.analysis.baselines import baseline_table
from rayunlearn.analysis.coreset_table import coreset_table, extra_settings
from rayunlearn.analysis.equal_retention import method_ranking
from rayunlearn.analysis.labels import format_cell, format_coreset_size, format_percent
from rayunlearn.analysis.metric_faithfulness import faithfulness_table
from rayunlearn.analysis.mode_connectivity import path_cells, paths_of
from rayunlearn.analysis.recovery import plain_setting, recovery_table
from rayunlearn.analysis.retain_choice import retain_table
from rayunlearn.analysis.run_frames import objective_of
from rayunlearn.reporting.attack_tables import attack_labels
from rayunlearn.reporting.plots import COLOURS, GREY, SYMBOLS
from rayunlearn.storage.run import Run

MARKS = dict(zip(SYMBOLS, ("o", "s", "D", "^", "P", "*"), strict=True))

# of one panel; the rest stands in the table
MAX_ROWS = 40
Looks = Mapping[str, tuple[str, str]]

# panels side by side
ACROSS = 3


@dataclass(frozen=True, kw_only=True)
class Series:
    """One name in the legend. `points`: (place, mean, low, high); the place is a number, or the
    row's label in a panel of rows.
    """

    name: str
    points: Sequence[tuple[Any, float | None, float | None, float | None]]
    joined: bool = True


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes. `rows`: places are labels and stand below each other; `reference`: a thin
    line at that value; `shares`: places are shares and their ticks stand where points do.
    """

    title: str
    place: str
    value: str
    series: Sequence[Series]
    rows: bool = False
    log: bool = False
    shares: bool = False
    reference: float | None = None


def svg(panels: Sequence[Panel]) -> str:
    """The panels beside each other; ValueError for none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style: Any = {
        "svg.hashsalt": "rayunlearn",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    rows = max((len(s.points) for p in panels if p.rows for s in p.series), default=0)
    with plt.rc_context(style):
        height = max(3.2, 0.9 + 0.2 * rows)
        lines, across = (
            (1, len(panels)) if len(panels) <= ACROSS else (-(-len(panels) // ACROSS), ACROSS)
        )
        size = (max(6.0, (4.6 if rows else 3.6) * across), height * lines)
        figure, grid = plt.subplots(lines, across, figsize=size, squeeze=False)
        axes = grid.flat[: len(panels)]
        for ax in grid.flat[len(panels) :]:
            ax.set_axis_off()
        styles = _series_styles(panels)
        for panel, ax in zip(panels, axes, strict=True):
            (_rows if panel.rows else _curves)(ax, panel, styles)
            ax.set_title(panel.title, fontsize=9)
        names = {
            line.get_label(): line for ax in axes for line in ax.get_legend_handles_labels()[0]
        }
        if len(names) > 1:
            figure.legend(
                names.values(),
                names.keys(),
                loc="lower center",
                ncols=min(4, len(names)),
                frameon=False,
                bbox_to_anchor=(0.5, 1.0),
            )
        figure.tight_layout()
        written = StringIO()
        figure.savefig(
            written,
            format="svg",
            bbox_inches="tight",
            metadata={"Date": None, "Creator": None},
            facecolor="white",
        )
        plt.close(figure)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n"


def _series_styles(panels: Sequence[Panel]) -> dict[str, tuple[str, str]]:
    """Colour and mark of every name, the same in all panels."""
    marks = list(MARKS.values())
    names = dict.fromkeys(series.name for panel in panels for series in panel.series)
    return {
        name: (COLOURS[position % len(COLOURS)], marks[position % len(marks)])
        for position, name in enumerate(names)
    }


def _curves(ax: Any, panel: Panel, styles: Looks) -> None:
    for series in panel.series:
        points = [p for p in series.points if p[1] is not None]
        xs, means = [p[0] for p in points], [p[1] for p in points]
        colour, mark = styles[series.name]
        ax.plot(
            xs,
            means,
            mark,
            color=colour,
            markersize=4,
            linestyle="-" if series.joined else "none",
            linewidth=1.2,
            label=series.name,
        )
        defined = [p for p in points if p[2] is not None]
        if defined:
            places, _, lows, highs = zip(*defined, strict=True)
            ax.vlines(places, lows, highs, color=colour, linewidth=1)
    if panel.log:
        ax.set_xscale("log")
    if panel.shares:
        ticks = sorted({point[0] for series in panel.series for point in series.points})
        ax.set_xticks(ticks, [format_percent(share) for share in ticks])
        ax.minorticks_off()
    if panel.reference is not None:
        ax.axhline(panel.reference, color=GREY, linewidth=0.8, linestyle="--")
    ax.set_xlabel(panel.place)
    ax.set_ylabel(panel.value)


def _rows(ax: Any, panel: Panel, styles: Looks) -> None:
    labels = list(dict.fromkeys(p[0] for series in panel.series for p in series.points))
    width = 0.6 / max(1, len(panel.series))
    for position, series in enumerate(panel.series):
        colour, mark = styles[series.name]
        points = [p for p in series.points if p[1] is not None]
        ys = [labels.index(p[0]) + (position - (len(panel.series) - 1) / 2) * width for p in points]
        ax.plot(
            [p[1] for p in points],
            ys,
            mark,
            color=colour,
            markersize=4,
            linestyle="none",
            label=series.name,
        )
        defined = [(p, y) for p, y in zip(points, ys, strict=True) if p[2] is not None]
        ax.hlines(
            [y for _, y in defined],
            [p[2] for p, _ in defined],
            [p[3] for p, _ in defined],
            color=colour,
            linewidth=1,
        )
    if panel.reference is not None:
        ax.axvline(panel.reference, color=GREY, linewidth=0.8, linestyle="--")
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlabel(panel.value)


def by_ratio(run: Run) -> list[Panel]:
    """Forgetting over the coreset's size, a panel per dataset, a curve per method and selector."""
    table = coreset_table(run)
    grid = table.filter(pl.col("role") == "grid", pl.col("forgetting").is_not_null())
    settings = extra_settings(table)
    goal = objective_of(run.experiment)
    return [
        Panel(
            title=format_cell(measured_rows.row(0, named=True), list(settings)) if settings else "",
            place="coreset, share of the forget set",
            value=f"{goal.forgetting} on forget",
            log=True,
            shares=True,
            series=[
                Series(
                    name=f"{method}, {selector}",
                    points=list(
                        cells.select(
                            "select.ratio", "forgetting", "forgetting_low", "forgetting_high"
                        ).iter_rows()
                    ),
                )
                for (method, selector), cells in measured_rows.sort("select.ratio").group_by(
                    ["method", "select.name"], maintain_order=True
                )
            ],
        )
        for measured_rows in (
            grid.partition_by(settings, maintain_order=True) if settings else [grid]
        )
    ]


def beside_reference(*references: str) -> Callable[[Run], list[Panel]]:
    """Differences to the reference, a panel per corpus and reference, a row per arm."""

    def significant(run: Run) -> list[Panel]:
        table = baseline_table(run).filter(pl.col("reference").is_in(references))
        places = table["place"].unique(maintain_order=True).to_list()
        return [
            Panel(
                title=f"{place or 'all'}: compared with {str(reference).replace('_', ' ')}",
                place="",
                value="difference of what is left (to the left: forgets more)",
                rows=True,
                reference=0.0,
                series=[
                    Series(
                        name=f"{format_percent(ratio)} of the forget set",
                        points=[
                            _difference(row, table)
                            for row in (
                                cells.sort("arm", "name").head(MAX_ROWS).iter_rows(named=True)
                            )
                        ],
                    )
                    for (ratio,), cells in rows.sort("ratio").group_by(
                        ["ratio"], maintain_order=True
                    )
                ],
            )
            for place in places
            for (reference,), rows in table.filter(pl.col("place") == place).group_by(
                ["reference"], maintain_order=True
            )
        ]

    return significant


def _difference(
    row: dict[str, Any], table: pl.DataFrame
) -> tuple[str, float, float | None, float | None]:
    of_method = table.filter(pl.col("arm") == row["arm"], pl.col("place") == row["place"])
    told_apart = of_method.group_by("ratio", "reference").len()["len"].max() or 0
    label = f"{row['arm']}, {row['name']}" if int(str(told_apart)) > 1 else row["arm"]
    return label, row["difference"], row["low"], row["high"]


def by_steps(run: Run) -> list[Panel]:
    """Forgetting over optimizer steps, a panel per method, a curve per coreset size."""
    curves = length_curves(run)
    goal = objective_of(run.experiment)
    return [
        Panel(
            title=str(method),
            place="optimizer steps",
            value=f"{goal.forgetting} on forget",
            log=True,
            series=[
                Series(
                    name=f"{format_percent(ratio)} of the forget set",
                    points=list(cells.select("steps", "mean", "low", "high").iter_rows()),
                )
                for (ratio,), cells in rows.sort("ratio", "steps").group_by(
                    ["ratio"], maintain_order=True
                )
            ],
        )
        for (method,), rows in curves.group_by(["method"], maintain_order=True)
    ]


def by_coverage(run: Run) -> list[Panel]:
    """The unlearned share of every trial over what its coreset covers: facts, keywords, and the
    ratio itself.
    """
    shares = unlearned_shares(run)
    return [
        Panel(
            title=str(method),
            place=words,
            value="unlearned share (1: as the full set)",
            reference=1.0,
            series=[
                Series(
                    name=str(dataset),
                    joined=False,
                    points=[
                        (x, y, None, None) for x, y in rows.select(predictor, "share").iter_rows()
                    ],
                )
                for (dataset,), rows in of_method.filter(pl.col(predictor).is_not_null()).group_by(
                    ["dataset"], maintain_order=True
                )
            ],
        )
        for (method,), of_method in shares.group_by(["method"], maintain_order=True)
        for predictor, words in (
            ("coverage", "facts covered"),
            ("keyword_coverage", "keyword weight covered"),
            ("select.ratio", "documents kept"),
        )
    ]


def by_retention(run: Run) -> list[Panel]:
    """What is left as trained and once interpolated to equal retention, a row per method."""
    table = method_ranking(run).sort("left")
    goal = objective_of(run.experiment)
    stages = {"unlearned": "as trained", "calibrated": "interpolated to equal retention"}
    return [
        Panel(
            title="",
            place="",
            value=f"{goal.forgetting} on forget",
            rows=True,
            series=[
                Series(
                    name=words,
                    points=list(
                        table.filter(pl.col("stage") == stage)
                        .select("name", "left", "left_low", "left_high")
                        .iter_rows()
                    ),
                )
                for stage, words in stages.items()
            ],
        )
    ]


def by_attack(run: Run) -> list[Panel]:
    """What is left after each attack, a row per attack, a series per attacked model; as it was
    before, in the first row.
    """
    table = (
        recovery_table(run)
        .filter(pl.col("after").is_not_null())
        .with_columns(pl.col("setting").map_elements(plain_setting, return_dtype=pl.String))
    )
    names = attack_labels(run, table["attacked"].unique(maintain_order=True).to_list())
    return [
        Panel(
            title="",
            place="",
            value=f"{metric or objective_of(run.experiment).forgetting} on forget",
            rows=True,
            reference=of_method["base"][0],
            series=[
                Series(
                    name=names[str(attacked)],
                    points=[
                        ("as unlearned", rows["unlearned"][0], None, None),
                        *rows.sort("setting")
                        .head(MAX_ROWS)
                        .select("setting", "after", "after_low", "after_high")
                        .iter_rows(),
                    ],
                )
                for (attacked,), rows in of_method.group_by(["attacked"], maintain_order=True)
            ],
        )
        for (metric,), of_method in table.group_by(["metric"], maintain_order=True)
    ]


def by_emphasis(run: Run) -> list[Panel]:
    """Answers recovered by key words minus those by random words, a row per model, a series per
    form.
    """
    table = emphasis_table(run)
    return [
        Panel(
            title="",
            place="",
            value="right again with key words, minus with random words",
            rows=True,
            reference=0.0,
            series=[
                Series(
                    name=str(form).replace("_", " "),
                    points=list(rows.select("cell", "net", "net_low", "net_high").iter_rows()),
                )
                for (form,), rows in table.group_by(["form"], maintain_order=True)
            ],
        )
    ]


def by_path(run: Run) -> list[Panel]:
    """Answer probability on the line from the full-set model, a panel per split,
    a curve per cell.
    """
    paths = paths_of(run)
    cells = list(path_cells(run).items())
    shown = [
        split
        for split in ("forget", "retain", "untouched")
        if any((s, position) == ("full", split) for _, s, position in paths)
    ]
    return [
        Panel(
            title=split,
            place="share of the coreset model's own weights",
            value="answer probability",
            series=[
                Series(
                    name=f"{forget} + {retain}, {format_coreset_size(*part)}",
                    points=_mean_path(
                        [paths[t, "full", split] for t, _ in pairs if (t, "full", split) in paths]
                    ),
                )
                for (forget, retain, *part), pairs in cells
                if any((t, "full", split) in paths for t, _ in pairs)
            ],
        )
        for split in shown
    ]


def _mean_path(paths: Sequence[Sequence[float]]) -> list[tuple[float, float, float, float]]:
    """The mean at every point, with the least and the most of the seeds."""
    return [
        (
            position / (len(values) and len(paths[0]) - 1),
            sum(values) / len(values),
            min(values),
            max(values),
        )
        for position, values in enumerate(zip(*paths, strict=True))
    ]


def by_defence(run: Run) -> list[Panel]:
    """What is left before and after each attack, a row per attack, a series per arm."""
    table = residual_after_attack(run)
    before = table.select(
        pl.lit("as unlearned").alias("attack"),
        "arm",
        pl.col("left").alias("mean"),
        pl.col("left_low").alias("low"),
        pl.col("left_high").alias("high"),
    )
    every = pl.concat([before.unique("arm", maintain_order=True), table.select(before.columns)])
    return [
        Panel(
            title="",
            place="",
            value=f"{objective_of(run.experiment).forgetting} on forget",
            rows=True,
            series=[
                Series(
                    name=str(arm),
                    points=list(rows.select("attack", "mean", "low", "high").iter_rows()),
                )
                for (arm,), rows in every.group_by(["arm"], maintain_order=True)
            ],
        )
    ]


def by_split(run: Run) -> list[Panel]:
    """What is left on each split, a panel per method, a row per arm with base first."""
    # general text has a metric of its own
    table = split_table(run).filter(~pl.col("split").is_in(["retain", GENERAL]))
    base = table.filter(pl.col("role") == "base")
    goal = objective_of(run.experiment)
    cells = table.filter(pl.col("role") == "grid")
    return [
        Panel(
            title=str(method),
            place="",
            value=goal.forgetting,
            rows=True,
            series=[
                Series(
                    name=str(split),
                    points=[
                        (arm_label(row), row["mean"], row["low"], row["high"])
                        for row in rows.iter_rows(named=True)
                    ],
                )
                for (split,), rows in pl.concat([base, of_method]).group_by(
                    ["split"], maintain_order=True
                )
            ],
        )
        for (method,), of_method in cells.group_by(["method"], maintain_order=True)
    ]


def by_metric(run: Run) -> list[Panel]:
    """A row for each metric: its AUC between models that know and models that never did, and what
    of relearning it had seen before (R).
    """
    table = faithfulness_table(run).head(MAX_ROWS)
    measures = {"AUC, base against gold": "auc", "R, under relearning": "relearning"}
    series = [
        Series(
            name=name,
            points=list(
                table.select("metric", column, f"{column}_low", f"{column}_high").iter_rows()
            ),
        )
        for name, column in measures.items()
    ]
    return [Panel(title="", place="", value="1 is best", rows=True, reference=0.5, series=series)]


def by_retain_choice(run: Run) -> list[Panel]:
    """What each choice of retain documents keeps more than random ones, a panel per setting."""
    table = retain_table(run).filter(pl.col("role") == "grid")
    return [
        Panel(
            title=str(setting).partition(",")[0],
            place="",
            value="less random retain documents",
            rows=True,
            reference=0.0,
            series=[
                Series(
                    name=str(measure),
                    points=list(rows.select("arm", "difference", "low", "high").iter_rows()),
                )
                for (measure,), rows in of_setting.group_by(["measure"], maintain_order=True)
            ],
        )
        for (setting,), of_setting in table.group_by(["setting"], maintain_order=True)
    ]


PICTURES: dict[str, Callable[[Run], Iterable[Panel]]] = {
    "pretrained_coreset": by_split,
    "pretrained_control": by_retention,
    "pretrained_dilemma": by_emphasis,
    "pretrained_unlearned": by_attack,
    "pretrained_tofu": by_split,
    "pretrained_books": by_split,
    "pretrained_mmlu": by_split,
    "coreset_effect": by_ratio,
    "keyword_effect": beside_reference("random_words"),
    "steps_or_data": by_steps,
    "redundancy": by_coverage,
    "selectors": beside_reference("random"),
    "keywords": beside_reference("random_words"),
    "control": by_retention,
    "truly_unlearned": by_attack,
    "dilemma": by_emphasis,
    "faithfulness": by_path,
    "defences": by_defence,
    "metric_faithfulness": by_metric,
    "linked_questions": by_attack,
    "retain_coreset": by_retain_choice,
    "optimizers": by_attack,
}


def picture_of(experiment: str, run: Run) -> str | None:
    """The experiment's picture as SVG text, None where there is nothing to draw."""
    panels = [
        panel
        for panel in PICTURES[experiment](run)
        if any(series.points for series in panel.series)
    ]
    return svg(panels) if panels else None
