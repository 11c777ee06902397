"""The paper's references: the number of one row of a page, linked to it, or an end in words."""

from pathlib import Path

import pytest

from experiments.findings.paper import (
    TEXT,
    MissingRowError,
    findings_by_name,
    page_lines,
    with_anchors,
    written,
)

PAGE = r"""# A question

- RMU: 3 of 8 comparisons are shown.
- NPO: none is shown.

| method | arm | left |
| --- | --- | --- |
| rmu + activation | random | 0.02 \[0.006, 0.04\] |
| rmu + activation | key\_words, all | 0.77 |
| npo + nll | random | 0.17 |

| other | table |
|---|---|
| 1 | a \| b |
"""
DOCS = Path(__file__).parents[2] / "docs"


def test_a_reference_is_the_number_of_its_row_with_a_link_to_it() -> None:
    text = (
        "left {{a-page | method=rmu + activation, arm=random | left}}, {{a-page ~ RMU: (\\d+) of}},"
        " {{a-page |\n arm=key_words, all | left}}"
    )
    assert written(text, {"a-page": PAGE}) == (
        "left [0.02 [0.006, 0.04]](findings/a-page.md#row-1), [3](findings/a-page.md#sentence-1),"
        " [0.77](findings/a-page.md#row-2)"
    )


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("a-page | method=rmu + activation | left", "must meet one row, met 2"),
        ("a-page | arm=nearest | left", "must meet one row, met 0"),
        ("a-page | arm=key_words, all | right", "no column 'right'"),
        ("page | arm=random | left", "no page page"),
        ("a-page ~ (shown)", "must meet one row, met 2"),
    ],
)
def test_a_reference_that_meets_no_row_or_several_ends_in_words(reference: str, said: str) -> None:
    with pytest.raises(MissingRowError, match=said):
        written(f"{{{{{reference}}}}}", {"a-page": PAGE})


def test_anchors_stand_in_the_rows_that_they_name_and_are_written_once() -> None:
    marked = with_anchors(PAGE)
    assert with_anchors(marked) == marked
    assert list(page_lines(marked)) == list(page_lines(PAGE))
    for line in page_lines(PAGE):
        (place,) = [row for row in marked.splitlines() if f'id="{line.anchor}"' in row]
        assert place.startswith(("| <a id=", "- <a id="))
    row = next(line for line in marked.splitlines() if "row-2" in line)
    assert row == r'| <a id="row-2"></a>rmu + activation | key\_words, all | 0.77 |'


def test_the_paper_is_what_its_text_and_the_pages_give() -> None:
    """No number in it is older than its page, and every link has its anchor."""
    pages = findings_by_name(DOCS)
    paper = (DOCS / "paper.md").read_text(encoding="utf-8")
    assert paper == written(TEXT.read_text(encoding="utf-8"), pages)
    assert all(page == with_anchors(page) for page in pages.values())
    assert paper.count("](findings/") > 30
