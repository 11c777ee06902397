"""Plotly figures of a run, for notebooks and, drawn by `reporting.svg`, for the report. Each
returns None where there is nothing to draw. Colours come without a background: the page sets it.

One colour per method and one dash and symbol per selector, the same in every figure (after Okabe
and Ito's palette, which people with any colour vision can tell apart, dark enough for white paper
and light enough for black; symbols and dashes repeat what colours say).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from rayunlearn.analysis.coreset_table import extra_settings
from rayunlearn.analysis.labels import (
    control_label,
    format_cell,
    format_coreset_size,
    format_number,
    format_percent,
)
from rayunlearn.analysis.layers import LAYER_MEASURES, layer_table
from rayunlearn.analysis.mode_connectivity import path_cells, paths_of
from rayunlearn.analysis.pareto import best_so_far, pareto_front
from rayunlearn.analysis.recovery import recovery_table
from rayunlearn.analysis.run_frames import (
    CONTEXT_SECTIONS,
    CORESET,
    FULL_SET,
    UNTOUCHED,
    objective_of,
    trial_table,
    varying_settings,
)
from rayunlearn.analysis.targets import OVER_FORGOTTEN
from rayunlearn.analysis.tuning import settings_tried
from rayunlearn.reporting.attack_tables import attack_labels
from rayunlearn.storage.run import Run

COLOURS = ("#0081cf", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#a05a2c", "#8a8a00", "#7b61c4")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star-triangle-down")

# legible on white and on black
GREY = "#808080"
ANCHORS = {"base": "before unlearning (base)", "gold": "never saw it (gold)"}

# per training curve: a panel is 330 units wide, and every point is in the page
MAX_POINTS = 120
MAX_PANELS = 12
LOSS_TERMS = ("loss", "forget_loss", "retain_loss")
LOOK_TERMS = ("forgetting", "utility")
GRADIENT_SPLITS = ("forget", "retain")

# rows of the heat map
MAX_ATTACKS = 60
# of more blocks the numbers would lie on each other; they are shown under the pointer
MAX_NUMBERED_LAYERS = 16
Facet = tuple[str, dict[str, Any]]


def coreset_curve(table: pl.DataFrame, experiment: Mapping[str, Any]) -> go.Figure | None:
    """Forgetting over the kept ratio (log), a line per method and selector with intervals; base,
    gold and controls across.
    """
    grid = table.filter(pl.col("role") == "grid", pl.col("forgetting").is_not_null())
    # one part is no curve: the table has its numbers
    if grid["select.ratio"].n_unique() < 2:
        return None
    facets = _facets(grid, extra_settings(table))
    figure = _panels(
        [title for title, _ in facets], y_title=objective_of(experiment).forgetting_words
    )
    for panel, (_, facet) in enumerate(facets):
        for method, selector, cells in _lines(_within(grid, facet)):
            _add(figure, panel, _curve(cells, "select.ratio", _style(table, method, selector)))
        _add_levels(figure, panel, _within(table, facet), grid)
    ratios = sorted(grid["select.ratio"].unique())
    figure.update_xaxes(
        type="log",
        title_text="coreset, share of the forget set",
        tickvals=ratios,
        ticktext=[format_percent(r) for r in ratios],
        minor_ticks="",
    )
    return _finished(figure)


def coverage_curve(table: pl.DataFrame, experiment: Mapping[str, Any]) -> go.Figure | None:
    """Forgetting over the share of facts that the kept documents state: one panel per method, a
    colour per data setting.
    """
    grid = table.filter(
        pl.col("role") == "grid",
        pl.col("forgetting").is_not_null(),
        pl.col("coverage").is_not_null(),
    )
    if grid["coverage"].n_unique() < 2:
        return None
    methods = grid["method"].unique(maintain_order=True).to_list()
    places = _facets(grid, extra_settings(table))
    figure = _panels(methods, y_title=objective_of(experiment).forgetting_words)
    for panel, method in enumerate(methods):
        for index, (title, facet) in enumerate(places):
            for _, selector, cells in _lines(
                _within(grid.filter(pl.col("method") == method), facet)
            ):
                style = _style(table, method, selector)
                # colours tell the settings apart: whether they meet is the question here
                if title:
                    style |= {
                        "name": f"{selector}, {title}",
                        "colour": COLOURS[-1 - index % len(COLOURS)],
                    }
                _add(figure, panel, _curve(cells.sort("coverage"), "coverage", style))
    figure.update_xaxes(
        title_text="share of the forget set's facts in the coreset",
        tickformat=".0%",
        range=[-0.03, 1.03],
    )
    return _finished(figure)


def pareto(run: Run) -> go.Figure | None:
    """Every measured trial by forgetting and utility, the front as a line, base and gold marked,
    the utility floor dashed; where the data has a split that no training was shown, a second panel
    by the utility metric on it, which retain training cannot hold up.
    """
    trials = trial_table(run).filter(
        pl.col("forgetting").is_not_null(), pl.col("utility").is_not_null()
    )
    if trials.filter(pl.col("role").is_in(["grid", "tuning"])).height == 0:
        return None
    goal = objective_of(run.experiment)
    facets = _facets(trials.filter(pl.col("role") == "grid"), _context_settings(run, trials)) or [
        ("", {})
    ]
    kinds = {"utility": goal.utility_split}
    if goal.utility_split != UNTOUCHED and trials[UNTOUCHED].drop_nulls().len():
        kinds[UNTOUCHED] = UNTOUCHED
    panels = [(*facet, column) for facet in facets for column in kinds][:MAX_PANELS]
    titles = [
        ", ".join(filter(None, (title, f"{goal.utility} on {kinds[column]}")))
        for title, _, column in panels
    ]
    figure = _panels(titles, y_title=goal.utility)
    for panel, (_, facet, column) in enumerate(panels):
        facet_rows = _within(trials, facet).filter(pl.col(column).is_not_null())
        _add_trials(figure, panel, facet_rows, trials, column)
        _add_front(figure, panel, facet_rows, column, aims=goal.target != "none")
        _add_anchors(figure, panel, facet_rows, column, goal.utility_floor)
    figure.update_xaxes(title_text=goal.forgetting_words)
    return _finished(figure)


def _context_settings(run: Run, trials: pl.DataFrame) -> list[str]:
    """Settings that vary and say what data and model a trial stands on."""
    return [name for name in varying_settings(run, trials) if name.startswith(CONTEXT_SECTIONS)]


def training_curves(run: Run) -> go.Figure | None:
    """Loss, forget loss and retain loss per step: a row per method, one trial (the first seed) per
    selector and ratio.
    """
    return _by_step(run, run.steps, LOSS_TERMS)


def look_curves(run: Run) -> go.Figure | None:
    """What the looks of training saw of forgetting and utility, as `training_curves` is laid out;
    None for a run of an earlier version.
    """
    is_forget = pl.col("split") == "forget"
    points = run.curves.filter(pl.col("kind") == "training")
    by_look = points.group_by("trial_id", pl.col("x").alias("step")).agg(
        pl.col("value").filter(is_forget).first().alias(LOOK_TERMS[0]),
        # where a look also asks for retention, utility comes before it
        pl.col("value").filter(~is_forget).first().alias(LOOK_TERMS[1]),
    )
    return _by_step(run, by_look, LOOK_TERMS)


def gradient_curves(run: Run) -> go.Figure | None:
    """The G-effect at the looks of the trials of `training_curves`: cosines with the gradients of
    the forget and the retain documents' NLL.
    """
    points = run.curves.filter(
        pl.col("kind") == "gradients", pl.col("metric") == "g_effect_cosine"
    ).select("trial_id", pl.col("x").cast(pl.Int64).alias("step"), "split", "value")
    wide = points.collect().pivot("split", index=["trial_id", "step"], values="value")
    missing = [
        pl.lit(None, dtype=pl.Float64).alias(t) for t in GRADIENT_SPLITS if t not in wide.columns
    ]
    return _by_step(run, wide.with_columns(missing).lazy(), GRADIENT_SPLITS)


def _by_step(run: Run, points: pl.LazyFrame, terms: Sequence[str]) -> go.Figure | None:
    """Columns of `points` over its column `step`: a row per method, a column per term."""
    trials = trial_table(run)
    settings = varying_settings(run, trials)
    grid = trials.filter(pl.col("role") == "grid")
    chosen = grid.unique(
        ["method.forget", "method.retain", "select.name", "select.ratio", *settings],
        keep="first",
        maintain_order=True,
    )
    steps = _points_of(points, chosen)
    chosen = chosen.filter(pl.col("trial_id").is_in(steps["trial_id"].unique().implode()))
    if chosen.height == 0:
        return None
    groups = chosen.partition_by(
        ["method.forget", "method.retain", *settings], maintain_order=True
    )[: MAX_PANELS // len(terms)]
    figure = _training_panels([group.row(0, named=True) for group in groups], settings, terms)
    ratios = chosen["select.ratio"].unique().sort(descending=True).to_list()
    for row, group in enumerate(groups, start=1):
        for trial in group.sort("select.ratio", descending=True).iter_rows(named=True):
            curve = _thinned(steps.filter(pl.col("trial_id") == trial["trial_id"]))
            for column, term in enumerate(terms, start=1):
                trace = _training_trace(trial, curve, term, ratios, chosen)
                trace.update(showlegend=trace.showlegend and column == 1)
                figure.add_trace(trace, row=row, col=column)
    figure.update_xaxes(title_text="optimizer step", row=len(groups))
    return _finished(figure)


def _points_of(points: pl.LazyFrame, trials: pl.DataFrame) -> pl.DataFrame:
    """The points of the trials, in order."""
    return (
        points.filter(pl.col("trial_id").is_in(trials["trial_id"].unique().implode()))
        .sort("trial_id", "step")
        .collect()
    )


def _training_panels(
    trials: Sequence[Mapping[str, Any]], settings: Sequence[str], terms: Sequence[str]
) -> Any:
    """A row of panels for each of the trials, a column for each of the terms."""
    titles = [_training_title(trial, settings, term) for trial in trials for term in terms]
    figure = make_subplots(
        rows=len(trials),
        cols=len(terms),
        subplot_titles=titles,
        horizontal_spacing=0.06,
        vertical_spacing=0.3 / (len(trials) + 1),
    )
    figure.update_layout(height=170 + 240 * len(trials))
    return figure


def weight_paths(run: Run) -> go.Figure | None:
    """Answer probability along the lines from the full-set model and, below, from base: a column
    per split, a line per method and part kept.
    """
    paths = paths_of(run)
    starts = [start for start in ("full", "base") if any(s == start for _, s, _ in paths)]
    splits = [
        split for split in ("forget", "retain", "untouched") if any(s == split for _, _, s in paths)
    ]
    if not starts:
        return None
    cells = list(path_cells(run).items())
    panels = [(start, split) for start in starts for split in splits]
    figure = _path_panels(panels, n_rows=len(starts))
    methods = list(dict.fromkeys(cell[:2] for cell, _ in cells))
    parts = list(dict.fromkeys(cell[2:] for cell, _ in cells))
    for (forget, retain, *part), pairs in cells:
        line = {
            "color": COLOURS[methods.index((forget, retain)) % len(COLOURS)],
            "dash": DASHES[parts.index(tuple(part)) % len(DASHES)],
            "width": 2,
        }
        name = f"{forget} + {retain}, {format_coreset_size(*part)}"
        for index, (start, split) in enumerate(panels):
            measured = [paths[t, start, split] for t, _ in pairs if (t, start, split) in paths]
            if measured:
                _add(figure, index, _path_trace(measured, name, line))
    figure.update_xaxes(title_text="share of the trial's own weights", row=len(starts))
    figure.update_yaxes(title_text="answer probability", range=[-0.03, 1.03], col=1)
    return _finished(figure)


def _path_panels(panels: Sequence[tuple[str, str]], *, n_rows: int) -> Any:
    """Panels with one y scale; each is the model that its paths start from, and its split."""
    titles = [
        f"{split}, from {'the full-set model' if start == 'full' else start}"
        for start, split in panels
    ]
    figure = make_subplots(
        rows=n_rows,
        cols=len(panels) // n_rows,
        subplot_titles=titles,
        shared_yaxes="all",
        horizontal_spacing=0.04,
        vertical_spacing=0.3 / n_rows,
    )
    figure.update_layout(height=170 + 280 * n_rows)
    return figure


def tuning_history(run: Run) -> go.Figure | None:
    """What is minimised of each tuned trial in order, one panel per study; filled where utility
    stays over the floor.
    """
    tried, goal = settings_tried(run), objective_of(run.experiment)
    if tried.is_empty():
        return None
    studies = tried.partition_by("study", maintain_order=True)[:MAX_PANELS]
    figure = _panels(
        [search_title(study["group"][0], study["search"][0]) for study in studies],
        y_title=f"{goal.forgetting_words}{'' if goal.target == 'none' else ': distance'}",
    )
    for panel, study in enumerate(studies):
        best = best_so_far(study, order="study_index", value="objective", feasible="feasible")
        _add_study(figure, panel, best)
    figure.update_xaxes(title_text="setting of the study", tickformat="d", nticks=8)
    return _finished(figure)


def search_title(group: str, search: int | None) -> str:
    """The group of a search in words, and from the second search on its number."""
    return (control_label(group) or "all") + (f", search {search + 1}" if search else "")


def recovery_map(run: Run) -> go.Figure | None:
    """Heat map of recovered fractions: attacks down, attacked models across, the number in every
    cell.
    """
    measured = recovery_table(run).filter(pl.col("recovered").is_not_null())
    if measured.height == 0:
        return None
    names = attack_labels(run, measured["attacked"].unique(maintain_order=True).to_list())
    settings = measured["setting"].unique(maintain_order=True).to_list()[:MAX_ATTACKS]
    values = {
        (row["setting"], row["attacked"]): row["recovered"]
        for row in measured.iter_rows(named=True)
    }
    grid = [[values.get((setting, attacked)) for attacked in names] for setting in settings]
    texts = [["" if value is None else f"{value:.2f}" for value in row] for row in grid]
    map_ = go.Heatmap(
        x=list(names.values()),
        y=settings,
        z=grid,
        text=texts,
        texttemplate="%{text}",
        zmin=0,
        zmax=1,
        colorscale="Cividis",
        xgap=2,
        ygap=2,
    )
    figure = go.Figure(
        map_.update(
            hovertemplate="%{y}<br>on %{x}: %{z:.3f}<extra></extra>",
            colorbar={"title": "recovered"},
        )
    )
    figure.update_layout(height=220 + 30 * len(settings))
    figure = _finished(figure)
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_xaxes(automargin=True, showgrid=False)
    return figure


def layer_maps(run: Run) -> go.Figure | None:
    """Heat maps over the blocks, one for each measure of table `diagnostics`: models down, blocks
    across, the number in every cell.
    """
    table = layer_table(run)
    measures = [name for name in LAYER_MEASURES if table[name].count()]
    if not measures:
        return None
    cells = table["cell"].unique(maintain_order=True).to_list()
    layers = sorted(table["layer"].unique().to_list())
    figure = make_subplots(
        rows=len(measures),
        cols=1,
        subplot_titles=[f"{name}: {LAYER_MEASURES[name]}" for name in measures],
        vertical_spacing=0.3 / len(measures),
    )
    for number, name in enumerate(measures, start=1):
        values = {(row["cell"], row["layer"]): row[name] for row in table.iter_rows(named=True)}
        grid = [[values.get((cell, layer)) for layer in layers] for cell in cells]
        trace = _block_heatmap(name, grid, cells, layers)
        figure.add_trace(trace, row=number, col=1)
    figure.update_layout(height=120 + len(measures) * (90 + 26 * len(cells)))
    figure = _finished(figure)
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(title_text="block", row=len(measures))
    return figure


def _block_heatmap(
    name: str, grid: Sequence[Sequence[float | None]], cells: Sequence[str], layers: Sequence[int]
) -> go.Heatmap:
    return go.Heatmap(
        x=[str(layer) for layer in layers],
        y=cells,
        z=grid,
        text=[["" if v is None else format_number(v) for v in row] for row in grid],
        texttemplate="%{text}" if len(layers) <= MAX_NUMBERED_LAYERS else "",
        colorscale="Cividis",
        showscale=False,
        xgap=1,
        ygap=2,
        hovertemplate=f"%{{y}}<br>block %{{x}}: %{{z:.4g}}<extra>{name}</extra>",
    )


def _panels(titles: Sequence[str], *, y_title: str) -> Any:
    """A figure of up to three panels beside each other with one y scale; titles that are empty take
    no room.
    """
    n_columns = 2 if len(titles) == 4 else min(3, len(titles))
    n_rows = -(-len(titles) // n_columns)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        subplot_titles=titles if any(titles) else None,
        shared_yaxes="all",
        horizontal_spacing=0.04,
        vertical_spacing=0.3 / n_rows,
    )
    figure.update_layout(height=170 + 330 * n_rows)
    figure.update_yaxes(title_text=y_title, col=1)
    return figure


def _add(figure: go.Figure, panel: int, trace: Any) -> None:
    n_columns = len(figure._grid_ref[0])
    named = {other.name for other in figure.data}
    trace.update(legendgroup=trace.name, showlegend=trace.name not in named)
    figure.add_trace(trace, row=panel // n_columns + 1, col=panel % n_columns + 1)


def _finished(figure: go.Figure) -> go.Figure:
    """Font, margins and legend that all figures share; no background of their own."""
    bottom_margin = _bottom_margin(figure)
    figure.update_layout(
        height=figure.layout.height + bottom_margin - 120,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend=LEGEND,
        hovermode="closest",
        font=FONT,
        margin={"l": 70, "r": 20, "t": 50, "b": bottom_margin},
    )
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    return figure


LEGEND = {
    "orientation": "h",
    "yref": "container",
    "yanchor": "bottom",
    "y": 0,
    "x": 0,
    "itemwidth": 40,
}

FONT = {
    "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
    "size": 14,
    "color": GREY,
}

AXIS = {
    "showline": True,
    "ticks": "outside",
    "zeroline": False,
    "gridcolor": "rgba(128,128,128,0.2)",
    "linecolor": GREY,
}


def _bottom_margin(figure: go.Figure) -> int:
    """Pixels of the axis title and of the lines that the legend takes under it."""
    entries = [
        trace.name
        for trace in figure.data
        if trace.name is not None and trace.showlegend is not False
    ]
    return 72 + 26 * -(-sum(60 + 8 * len(name) for name in entries) // 900)


def _facets(frame: pl.DataFrame, settings: Sequence[str]) -> list[Facet]:
    """One panel per combination of the varying settings, with its title."""
    if not settings:
        return [("", {})]
    places = frame.select(settings).unique(maintain_order=True).head(MAX_PANELS).to_dicts()
    return [(format_cell(facet, list(settings)), facet) for facet in places]


def _within(frame: pl.DataFrame, facet: Mapping[str, Any]) -> pl.DataFrame:
    """Rows of this panel; a row without the setting (base has no method) belongs to every panel."""
    facet_rows = [
        pl.col(name).is_null() | pl.col(name).eq_missing(pl.lit(value))
        for name, value in facet.items()
    ]
    return frame.filter(*facet_rows) if facet_rows else frame


def _lines(grid: pl.DataFrame) -> list[tuple[str, str, pl.DataFrame]]:
    """(method, selector, cells): the full set, which all selectors share, ends each of a method's
    lines.
    """
    lines = []
    for (method,), cells in grid.group_by(["method"], maintain_order=True):
        full, parts = cells.filter(FULL_SET), cells.filter(CORESET)
        for (selector,), part in (parts if parts.height else full).group_by(
            ["select.name"], maintain_order=True
        ):
            line = pl.concat([part, full]) if parts.height else full
            lines.append((str(method), str(selector), line.sort("select.ratio")))
    return lines


def _style(table: pl.DataFrame, method: str, selector: str) -> dict[str, str]:
    """Colour by method, dash and symbol by selector, by their order in the whole table."""
    grid = table.filter(pl.col("role") == "grid")
    m = grid["method"].unique(maintain_order=True).to_list().index(method)
    s = sorted(
        grid["select.name"].drop_nulls().unique(), key=lambda name: (name != "random", name)
    ).index(selector)
    return {
        "name": f"{method}, {selector}",
        "colour": COLOURS[m % len(COLOURS)],
        "dash": DASHES[s % len(DASHES)],
        "symbol": SYMBOLS[s % len(SYMBOLS)],
    }


def _curve(cells: pl.DataFrame, x: str, style: Mapping[str, str]) -> Any:
    up = (cells["forgetting_high"] - cells["forgetting"]).to_list()
    down = (cells["forgetting"] - cells["forgetting_low"]).to_list()
    return go.Scatter(
        x=cells[x].to_list(),
        y=cells["forgetting"].to_list(),
        name=style["name"],
        mode="lines+markers",
        text=[_hover(r) for r in cells.iter_rows(named=True)],
        hovertemplate="%{text}<extra>" + style["name"] + "</extra>",
        line={"color": style["colour"], "dash": style["dash"], "width": 2},
        marker={"color": style["colour"], "symbol": style["symbol"], "size": 9},
        error_y={"array": up, "arrayminus": down, "thickness": 1.2, "width": 4},
    )


def _hover(row: Mapping[str, Any]) -> str:
    interval = format_number(row["forgetting"])
    if row["forgetting_low"] is not None:
        interval += (
            f" [{format_number(row['forgetting_low'])}, {format_number(row['forgetting_high'])}]"
        )
    size_words = (
        f"{format_percent(row['select.ratio'])}, {format_number(row['n_kept'])} documents, coverage"
        f" {format_percent(row['coverage'])}"
    )
    utility = f"utility {format_number(row['utility'])}, {row['seeds']} seeds"
    return f"{size_words}<br>forget {interval}<br>{utility}"


def _add_levels(figure: go.Figure, panel: int, table: pl.DataFrame, grid: pl.DataFrame) -> None:
    """Horizontal lines: base, gold and each control whose value differs."""
    dashes = {"base": "solid", "gold": "dot", "control": "dashdot"}
    levels = table.filter(pl.col("role").is_in(list(dashes)), pl.col("forgetting").is_not_null())
    for level in levels.unique(["role", "forgetting"], keep="first", maintain_order=True).iter_rows(
        named=True
    ):
        words = {"control": f"retain loss only ({level['method.retain']})", **ANCHORS}[
            level["role"]
        ]
        line = {"color": GREY, "dash": dashes[level["role"]], "width": 2}
        trace = go.Scatter(
            x=_ends(grid["select.ratio"]),
            y=[level["forgetting"]] * 2,
            mode="lines",
            line=line,
            name=words,
        )
        _add(
            figure,
            panel,
            trace.update(
                hovertemplate=f"{words}: {format_number(level['forgetting'])}<extra></extra>"
            ),
        )


# role, status and symbol of the points
TRIAL_SYMBOLS = (
    ("grid", "complete", "circle"),
    ("grid", OVER_FORGOTTEN, "triangle-down"),
    ("grid", "collapsed", "x"),
    ("tuning", "complete", "circle-open"),
    ("tuning", OVER_FORGOTTEN, "triangle-down-open"),
    ("tuning", "collapsed", "x-thin-open"),
)


def _add_trials(
    figure: go.Figure,
    panel: int,
    facet_rows: pl.DataFrame,
    everything: pl.DataFrame,
    column: str,
) -> None:
    """The panel's trials as points by forgetting and `column`: a colour per method of `everything`,
    by `TRIAL_SYMBOLS`.
    """
    methods = (
        everything.filter(pl.col("role").is_in(["grid", "tuning"]))["method.forget"]
        .unique(maintain_order=True)
        .to_list()
    )
    is_marked = pl.col("over_forgotten").fill_null(value=False) & (pl.col("status") == "complete")
    ending = pl.when(is_marked).then(pl.lit(OVER_FORGOTTEN)).otherwise("status")
    for index, method in enumerate(methods):
        for role, status, symbol in TRIAL_SYMBOLS:
            points = facet_rows.filter(
                pl.col("role") == role,
                ending == status,
                pl.col("method.forget") == method,
            )
            if points.height:
                name = (
                    method
                    + ("" if role == "grid" else ", tuning")
                    + ("" if status == "complete" else f", {status}")
                )
                colour = COLOURS[index % len(COLOURS)]
                _add(figure, panel, _trial_points(points, name, colour, symbol, column))


def _trial_points(points: pl.DataFrame, name: str, colour: str, symbol: str, column: str) -> Any:
    """Trials by forgetting and `column`, each with its settings where the pointer rests."""
    text = [
        f"{t['trial_id']}<br>{t['select.name']} {format_percent(t['select.ratio'])}, seed"
        f" {t['train.seed']}<br>forget {t['forgetting']:.3f}, {column} {t[column]:.3f}"
        for t in points.iter_rows(named=True)
    ]
    trace = go.Scatter(
        x=points["forgetting"].to_list(),
        y=points[column].to_list(),
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 9, "opacity": 0.8},
        name=name,
        text=text,
    )
    hover = "%{text}<extra>%{fullData.name}</extra>"
    return trace.update(hovertemplate=hover)


def _add_front(
    figure: go.Figure, panel: int, facet_rows: pl.DataFrame, column: str, *, aims: bool
) -> None:
    """The Pareto front of the panel's trials: a step line, or where distance from a target counts
    and not forgetting itself, one from trial to trial.
    """
    front = pareto_front(
        facet_rows.filter(pl.col("role").is_in(["grid", "tuning"])), "objective", column
    ).sort("forgetting", column)
    trace = go.Scatter(
        x=front["forgetting"].to_list(),
        y=front[column].to_list(),
        mode="lines",
        line={"color": GREY, "width": 1.5, "shape": "linear" if aims else "hv"},
        name="front",
        hoverinfo="skip",
    )
    _add(figure, panel, trace)


def _add_anchors(
    figure: go.Figure, panel: int, facet_rows: pl.DataFrame, column: str, floor: float
) -> None:
    """Base and gold as large grey marks, and the utility floor across where it is asked of."""
    for (role, words), symbol in zip(ANCHORS.items(), ("star", "diamond"), strict=True):
        rows = facet_rows.filter(pl.col("role") == role)
        marker = {"color": GREY, "symbol": symbol, "size": 15, "line": {"width": 1, "color": GREY}}
        _add(
            figure,
            panel,
            go.Scatter(
                x=rows["forgetting"].to_list(),
                y=rows[column].to_list(),
                mode="markers",
                marker=marker,
                name=words,
            ),
        )
    base = facet_rows.filter(pl.col("role") == "base")[column].to_list()
    if base and column == "utility":
        ends, level = _ends(facet_rows["forgetting"]), floor * base[0]
        line = {"color": GREY, "dash": "dash", "width": 1}
        _add(
            figure,
            panel,
            go.Scatter(
                x=ends,
                y=[level, level],
                mode="lines",
                line=line,
                name="utility floor",
                hoverinfo="skip",
            ),
        )


def _ends(values: pl.Series) -> list[float]:
    measured = sorted(values.drop_nulls().to_list())
    return [measured[0], measured[-1]]


def _training_title(trial: Mapping[str, Any], settings: Sequence[str], term: str) -> str:
    label = ", ".join(str(trial[name]) for name in settings)
    return (
        f"{trial['method.forget']} + {trial['method.retain']}:"
        f" {term.replace('_', ' ')}{'<br>' + label if label else ''}"
    )


def _thinned(curve: pl.DataFrame) -> pl.DataFrame:
    """At most MAX_POINTS points, evenly taken; the last one always stays."""
    stride = -(-curve.height // MAX_POINTS) or 1
    return curve.reverse().gather_every(stride).reverse()


def _training_trace(
    trial: Mapping[str, Any],
    curve: pl.DataFrame,
    term: str,
    ratios: Sequence[float],
    chosen: pl.DataFrame,
) -> Any:
    selectors = sorted(chosen["select.name"].unique(), key=lambda name: (name != "random", name))
    full = trial["select.ratio"] == 1
    name = f"{format_percent(trial['select.ratio'])}{'' if full else ' ' + trial['select.name']}"
    line = {
        "color": COLOURS[ratios.index(trial["select.ratio"]) % len(COLOURS)],
        "dash": DASHES[selectors.index(trial["select.name"]) % len(DASHES)],
        "width": 1.6,
    }
    first = trial["method.forget"] == chosen["method.forget"][0]
    return go.Scatter(
        x=curve["step"].to_list(),
        y=curve[term].to_list(),
        mode="lines",
        line=line,
        name=name,
        legendgroup=name,
        showlegend=first,
        hovertemplate=f"{name}<br>step %{{x}}: %{{y:.4f}}<br>{trial['trial_id']}<extra></extra>",
    )


def _path_trace(paths: Sequence[Sequence[float]], name: str, line: Mapping[str, Any]) -> Any:
    """The mean of paths with equally many points."""
    means = [sum(values) / len(values) for values in zip(*paths, strict=True)]
    x = [index / (len(means) - 1) for index in range(len(means))]
    return go.Scatter(
        x=x,
        y=means,
        mode="lines+markers",
        name=name,
        line=dict(line),
        marker={"size": 5},
        hovertemplate="%{x:.2f}: %{y:.3f}<extra>" + name + "</extra>",
    )


def _add_study(figure: go.Figure, panel: int, study: pl.DataFrame) -> None:
    """The trials of a study in order, and the best forgetting so far as a line."""
    for feasible, words, symbol in (
        (True, "utility over the floor", "circle"),
        (False, "under the floor", "x-thin-open"),
    ):
        points = study.filter(pl.col("feasible") == feasible)
        marker = {"color": COLOURS[0] if feasible else COLOURS[1], "symbol": symbol, "size": 10}
        _add(figure, panel, _study_points(points, words, marker))
    trace = go.Scatter(
        x=study["study_index"].to_list(),
        y=study["best_so_far"].to_list(),
        mode="lines",
        line={"color": GREY, "shape": "hv", "width": 2},
        name="best so far",
        hoverinfo="skip",
    )
    _add(figure, panel, trace)


def _study_points(points: pl.DataFrame, name: str, marker: Mapping[str, Any]) -> Any:
    """Trials of a study by their index and what is minimised."""
    text = [
        f"forget {format_number(f)}, utility {format_number(u)}<br>{t}"
        for f, u, t in points.select("forgetting", "utility", "trial_id").iter_rows()
    ]
    trace = go.Scatter(
        x=points["study_index"].to_list(),
        y=points["objective"].to_list(),
        mode="markers",
        marker=dict(marker),
        name=name,
        text=text,
    )
    return trace.update(hovertemplate="trial %{x}: %{y:.3f}<br>%{text}<extra></extra>")
