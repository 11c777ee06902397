"""The page without a browser: its size, its headings, its tables, its pictures in words, and the
contrast of its colours.
"""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from rayunlearn.reporting.glossary import TERMS
from rayunlearn.reporting.html import page
from rayunlearn.reporting.page_tables import MAX_COLUMNS, page_tables, plain_view
from rayunlearn.reporting.svg import contrast
from rayunlearn.storage.run import open_run
from tests import synthetic

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "rayunlearn" / "reporting" / "templates" / "report.html.j2"
# what an unfinished element may stand in for
EMPTY_ELEMENTS = ("meta", "br", "line", "circle", "rect", "polygon", "path")


class Structure(HTMLParser):
    """Headings, ids, tables by their widest row, and every picture with its words."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.widths: list[int] = []
        self.labelled: list[tuple[dict[str, str | None], str]] = []
        self.cells = 0
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self.widths.append(0)
        if tag == "tr":
            self.cells = 0
        if tag in ("th", "td"):
            self.cells += 1
            self.widths[-1] = max(self.widths[-1], self.cells)
        if tag == "svg":
            self.labelled.append((attributes, ""))
        if tag not in EMPTY_ELEMENTS:
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY_ELEMENTS:
            assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] in ("title", "desc") and "svg" in self.inside:
            attributes, words = self.labelled[-1]
            self.labelled[-1] = (attributes, words + data)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(open_run(synthetic.write_run(tmp_path_factory.mktemp("run"))).in_memory())


@pytest.fixture(scope="module")
def structure(text: str) -> Structure:
    parsed = Structure()
    parsed.feed(text)
    return parsed


def test_a_run_of_55_trials_is_a_page_of_less_than_half_a_megabyte(text: str) -> None:
    """Below the promised 2 MB by a factor that a run of 64 trials with attacks does not use up."""
    assert text.startswith("<!DOCTYPE html>") and len(text.encode()) < 500_000


def test_headings_go_down_one_level_at_a_time_and_ids_are_unique(structure: Structure) -> None:
    assert structure.headings[0] == 1 and structure.headings.count(1) == 1
    assert all(later <= level + 1 for level, later in pairwise(structure.headings))
    assert len(structure.ids) == len(set(structure.ids)) and structure.inside == []


def test_every_picture_has_a_title_and_its_content_in_words(structure: Structure) -> None:
    pictures = [(a, words) for a, words in structure.labelled if a.get("aria-hidden") != "true"]
    assert len(pictures) >= 10
    for attributes, words in pictures:
        assert attributes["role"] == "img" and attributes.get("aria-labelledby")
        assert set((attributes["aria-labelledby"] or "").split()) <= set(structure.ids)
        # a title and at least one number
        assert re.search(r"\d", words) and len(words) > 20


def test_no_table_has_more_columns_than_fit(structure: Structure) -> None:
    assert len(structure.widths) > 3 and max(structure.widths) <= MAX_COLUMNS


def test_a_cell_on_a_phone_has_the_name_of_its_column(text: str) -> None:
    cells = re.findall(r"<td([^>]*)>", text.partition("<main>")[2])
    assert cells and all("data-label" in cell for cell in cells)


def colours(rule: str) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(int(value[i : i + 2], 16) / 255 for i in (0, 2, 4))
        for name, value in re.findall(r"--(\w+): #(\w{6});", rule)
    }


def test_text_has_the_contrast_that_it_needs_on_light_dark_and_printed_paper() -> None:
    """WCAG 2.2, 1.4.3: 4.5 for text, on the page and on the band behind heads of tables."""
    rules = re.findall(r":root \{([^}]*)\}", TEMPLATE.read_text(encoding="utf-8"))
    assert len(rules) == 3
    for rule in rules:
        palette = colours(rule)
        for paper in ("paper", "band"):
            for ink in ("ink", "soft", "accent", "warn"):
                assert contrast(palette[ink], palette[paper]) >= 4.5, (ink, paper)


def test_the_glossary_of_the_page_is_that_of_the_docs(text: str) -> None:
    source = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\*\*.*?) \| (.*?) \| .*? \|$", source, re.MULTILINE)
    plain = [
        (term.replace("**", ""), re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", meaning).replace("`", ""))
        for term, meaning in rows
    ]
    assert list(TERMS) == plain
    assert text.count("<dt>over-forgotten</dt>") == 1


def test_columns_of_long_names_are_fewer_in_a_table() -> None:
    """A name of 20 characters takes 16 + 160 of 1232 pixels, that of the rows 16 + 24: six stand
    beside it (1056 of 1192), the seventh in a second table.
    """
    headers = ("row", *(f"{'n' * 19}{i}" for i in range(7)))
    view = plain_view(headers, [("npo", *"1234567")])
    first, second = page_tables(view)
    assert first.headers == headers[:7] and second.headers == ("row", headers[7])
    assert second.rows == (("npo", "7"),)


def test_page_one_has_the_coreset_curve_and_is_over_before_the_findings(text: str) -> None:
    """With a caption that says how to read it; a run of one part has no curve."""
    brief = text[text.index('id="brief"') : text.index('id="findings"')]
    assert brief.index('id="h-left"') < brief.index('id="figure-coreset"') < brief.index("h-sure")
    assert "A flat line means" in brief and text.count('id="figure-coreset"') == 1
    one_part = page(open_run(ROOT / "docs" / "notebooks" / "runs" / "control"))
    assert "figure-coreset" not in one_part and "figure-coverage" not in one_part


def test_metrics_are_explained_where_they_were_measured() -> None:
    run = open_run(ROOT / "docs" / "notebooks" / "runs" / "coreset")
    measured = set(run.evals.select("metric").unique().collect()["metric"])
    shown = page(run)
    shown = shown[shown.index("What the metrics mean") :]
    explained = set(re.findall(r"<dt>(\w+)</dt>", shown[: shown.index("</dl>")]))
    assert explained and explained <= measured
    assert {row["name"] for row in run.experiment["metrics"]} - explained
