"""Pictures of the findings: what they show are the rows, and the file is the same twice."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import polars as pl
import pytest

from experiments.findings.figures import PICTURES, Panel, Series, by_ratio, svg
from experiments.findings.page import FINDINGS, findings_pages
from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.storage.run import open_run
from tests import synthetic

pytest.importorskip("matplotlib")


def centres(picture: str) -> list[tuple[float, float]]:
    """Where the marks stand, in the picture's own units, y downwards."""
    return [
        (float(x), float(y))
        for x, y in re.findall(
            r'<use xlink:href="#m\w+" x="([\d.]+)" y="([\d.]+)" style="fill', picture
        )
    ]


def test_a_row_s_mark_stands_where_its_value_is_and_rows_go_downwards() -> None:
    points = [
        ("first", 0.0, -0.5, 0.5),
        ("second", 1.0, 0.5, 1.5),
        ("third", 2.0, None, None),
        ("unmeasured", None, None, None),
    ]
    picture = svg(
        [
            Panel(
                title="",
                place="",
                value="v",
                rows=True,
                reference=0.0,
                series=[Series(name="one", points=points)],
            )
        ]
    )
    marks = centres(picture)
    assert len(marks) == 3
    (x0, y0), (x1, y1), (x2, y2) = marks
    # equal distances of values are equal on the axis
    assert x1 - x0 == pytest.approx(x2 - x1) and x1 > x0
    assert y1 - y0 == pytest.approx(y2 - y1) and y1 > y0
    assert {"first", "second", "third", "unmeasured"} <= set(
        ElementTree.fromstring(picture).itertext()
    )


def test_the_same_rows_give_the_same_file() -> None:
    panel = Panel(
        title="t",
        place="x",
        value="y",
        log=True,
        series=[Series(name=n, points=[(1, 0.5, 0.4, 0.6), (10, 0.2, 0.1, 0.3)]) for n in "ab"],
    )
    assert svg([panel]) == svg([panel]) and "date" not in svg([panel]).lower()


def test_shares_stand_at_their_points_in_percent() -> None:
    points = [(0.05, 0.5, 0.4, 0.6), (0.25, 0.3, 0.2, 0.4), (1.0, 0.2, 0.1, 0.3)]
    series = [Series(name="npo", points=points)]
    texts = set(
        ElementTree.fromstring(
            svg([Panel(title="", place="x", value="y", log=True, shares=True, series=series)])
        ).itertext()
    )
    assert {"5%", "25%", "100%"} <= texts and not any("10^" in text for text in texts)


def test_the_coreset_curve_has_the_table_s_numbers(tmp_path: Path) -> None:
    synthetic.write_run(tmp_path)
    run = open_run(tmp_path)
    grid = coreset_table(run).filter(pl.col("role") == "grid", pl.col("forgetting").is_not_null())
    drawn = [point for panel in by_ratio(run) for series in panel.series for point in series.points]
    expected = list(
        grid.select("select.ratio", "forgetting", "forgetting_low", "forgetting_high").iter_rows()
    )
    assert sorted(drawn) == sorted(expected) and len(drawn) > 3


def test_every_finding_has_a_picture_and_the_page_shows_what_it_wrote(tmp_path: Path) -> None:
    assert list(PICTURES) == list(dict.fromkeys(finding.experiment for finding in FINDINGS))
    synthetic.write_run(tmp_path / "coreset_effect" / "1")
    page = findings_pages(tmp_path, tmp_path / "pictures")["findings/coreset-effect.md"]
    written = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert (
        written == ["findings-coreset-effect.svg"]
        and page.count("](../pictures/findings-coreset-effect.svg)") == 1
    )
    assert "pictures/" not in findings_pages(tmp_path)["findings/coreset-effect.md"]
