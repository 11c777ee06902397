"""Figures as SVG: values stand where the axes say, and nothing that is drawn is lost for who does
not see it.
"""

import re
import xml.etree.ElementTree as ElementTree

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from rayunlearn.reporting.plots import COLOURS, GREY
from rayunlearn.reporting.svg import HEIGHT, WIDTH, contrast, draw, symbol

SVG = "{http://www.w3.org/2000/svg}"
WHITE_PAPER, DARK_PAPER = "#ffffff", "#14181d"


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def test_a_point_stands_where_its_tick_is() -> None:
    """On a logarithmic axis 0.1 lies half way between 0.01 and 1; the circle at (0.1, 0.5) is on
    the grid lines of both ticks.
    """
    trace = go.Scatter(x=[0.01, 0.1, 1.0], y=[0.0, 0.5, 1.0], mode="markers", name="npo")
    figure = go.Figure(trace)
    values = [0.01, 0.1, 1.0]
    figure.update_xaxes(type="log", tickvals=values, ticktext=["1%", "10%", "100%"])
    (panel,) = draw(figure, name="a").panels
    root = ElementTree.fromstring(panel.svg)
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")]
    middle = [(circles[0][i] + circles[2][i]) / 2 for i in (0, 1)]
    assert circles[1] == pytest.approx(middle, abs=0.11)
    rules = [line for line in root.iter(f"{SVG}line") if line.get("class") == "rule"]
    assert [circles[1][0]] * 2 in [[float(r.get("x1")), float(r.get("x2"))] for r in rules]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in circles)
    assert panel.words == "npo: 1% is 0, 10% is 0.5, 100% is 1."


def test_error_bars_and_steps_are_drawn_and_a_missing_value_is_a_gap() -> None:
    bars = {"array": [0.1, 0.1, 0.1], "arrayminus": [0.2, 0.2, 0.2]}
    line = {"shape": "hv", "dash": "dash"}
    trace = go.Scatter(x=[1, 2, 3], y=[0.5, None, 0.7], mode="lines", line=line, error_y=bars)
    svg = draw(go.Figure(trace), name="a").panels[0].svg
    paths = re.findall(r'<path d="([^"]*)"', svg)
    # two points without a line between them, then two error bars
    assert [re.sub(r"[\d. -]+", "", path) for path in paths] == ["MM", "MVMV"]
    assert 'stroke-dasharray="7 4"' in svg
    steps = go.Scatter(x=[1, 2], y=[0.5, 0.7], mode="lines", line={"shape": "hv"})
    (path,) = re.findall(r'<path d="([^"]*)"', draw(go.Figure(steps), name="a").panels[0].svg)
    (_, corner, end) = re.findall(r"[ML]([\d.]+) ([\d.]+)", path)
    assert corner[0] == end[0] and corner[1] != end[1]


def test_panels_that_share_an_axis_have_one_scale_and_titles_of_their_own() -> None:
    figure = make_subplots(rows=1, cols=2, subplot_titles=["low", "high"], shared_yaxes="all")
    figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="markers", name="a"), row=1, col=1)
    figure.add_trace(go.Scatter(x=[0, 1], y=[9, 10], mode="markers", name="a"), row=1, col=2)
    drawing = draw(figure, name="f")
    assert [panel.title for panel in drawing.panels] == ["low", "high"]
    assert [entry.name for entry in drawing.legend] == ["a"]
    ticks = [
        [t.text for t in ElementTree.fromstring(p.svg).iter(f"{SVG}text")][1:5]
        for p in drawing.panels
    ]
    assert ticks[0] == ticks[1]


def test_tick_labels_of_neighbours_do_not_touch() -> None:
    values = [0.01, 0.0101, 1.0]
    figure = go.Figure(go.Scatter(x=values, y=[1, 2, 3], mode="lines", name="a"))
    figure.update_xaxes(type="log", tickvals=values, ticktext=["1%", "1.01%", "100%"])
    svg = draw(figure, name="a").panels[0].svg
    assert ">1%<" in svg and ">100%<" in svg and ">1.01%<" not in svg


def test_a_heat_map_has_its_numbers_its_names_and_panels_that_a_phone_can_hold() -> None:
    columns = [f"model {i}" for i in range(10)]
    rows = [[i / 9 for i in range(10)], [None] * 10]
    heat = go.Heatmap(x=columns, y=["relearning steps=20", "rounding"], z=rows, zmin=0, zmax=1)
    panels = draw(go.Figure(heat), name="m", title="Recovered").panels
    assert len(panels) == 2 and "10: model 9" in panels[1].svg
    assert "relearning steps=20: model 8 0.89, model 9 1.00." in panels[1].words
    assert "rounding: nothing." in panels[0].words
    for fill, ink in re.findall(r'fill="rgb\((.*?)\)"/><text[^>]*fill="(#\w+)"', panels[0].svg):
        cell = [int(part) / 255 for part in fill.split(",")]
        assert contrast(cell, rgb(ink)) >= 4.5


def test_of_several_heat_maps_each_has_its_title_and_short_names_stand_above_their_columns() -> (
    None
):
    figure = make_subplots(rows=2, cols=1, subplot_titles=["length of the change", "directions"])
    for row, values in enumerate(([0.25, 0.75], [1.0, 2.0]), start=1):
        figure.add_trace(go.Heatmap(x=["7", "8"], y=["rmu"], z=[values]), row=row, col=1)
    first, second = draw(figure, name="m", title="Block by block").panels
    drawn = [re.findall(r">([^<>]+)</text>", panel.svg) for panel in (first, second)]
    assert drawn == [
        ["length of the change", "7", "8", "rmu", "0.25", "0.75"],
        ["directions", "7", "8", "rmu", "1.00", "2.00"],
    ]
    assert first.words == "rmu: 7 0.25, 8 0.75."


def test_what_comes_from_data_cannot_end_its_element() -> None:
    hostile = "</title><script>alert(1)</script>"
    trace = go.Scatter(x=[1], y=[1], mode="markers", name=hostile, text=[hostile])
    drawing = draw(go.Figure(trace), name="a", title=hostile)
    assert "<script" not in drawing.panels[0].svg
    ElementTree.fromstring(drawing.panels[0].svg)


@pytest.mark.parametrize("colour", [*COLOURS, GREY])
def test_a_series_can_be_seen_on_white_and_on_dark_paper(colour: str) -> None:
    """WCAG 2.2, 1.4.11: graphics need a contrast of 3."""
    for paper in (WHITE_PAPER, DARK_PAPER):
        assert contrast(rgb(colour), rgb(paper)) >= 3


def test_contrast_is_that_of_wcag() -> None:
    """#777777 on white is the known 4.48."""
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.005)


def test_symbols_differ_and_open_ones_are_hollow() -> None:
    names = ("circle", "square", "diamond", "triangle-up", "cross", "star-triangle-down", "x")
    assert len({symbol(name, 10, 10, 5, "#000000") for name in names}) == len(names)
    assert 'fill="none"' in symbol("circle-open", 10, 10, 5, "#000000")
