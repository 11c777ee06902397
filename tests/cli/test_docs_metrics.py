"""docs/metrics.md is the tables', and the probes that need no data are right."""

from pathlib import Path

import pytest

from rayunlearn.cli.docs_metrics import metrics_page
from rayunlearn.data.arithmetic import arithmetic_probes
from rayunlearn.data.documents import Document
from rayunlearn.errors import UserError
from rayunlearn.metrics.corpus import CORPUS_METRICS
from rayunlearn.metrics.table import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_what_the_tables_make() -> None:
    assert PAGE.read_text(encoding="utf-8").rstrip() == metrics_page().rstrip(), (
        "run: python -m rayunlearn.cli.docs_metrics > docs/metrics.md"
    )


@pytest.mark.parametrize("name", [*METRICS, *CORPUS_METRICS])
def test_every_metric_has_a_line_and_a_definition(name: str) -> None:
    page = metrics_page()
    assert f"| `{name}`" in page and f"**{name}**. " in page


def test_arithmetic_is_right_and_its_options_are_wrong() -> None:
    probes = arithmetic_probes(60)
    assert len({p.doc_id for p in probes}) == 60
    for probe in probes:
        first, sign, second = probe.prompt.removeprefix("What is ").removesuffix("?").split()
        answer = {
            "+": int(first) + int(second),
            "-": int(first) - int(second),
            "*": int(first) * int(second),
        }[sign]
        assert probe.answer == str(answer) and answer >= 0
        assert (
            len(set(probe.wrong)) == 3
            and probe.answer not in probe.wrong
            and all(abs(int(w) - answer) <= 10 for w in probe.wrong)
        )
    assert {p.topic for p in probes} == {"+", "-", "*"}


def test_arithmetic_is_the_seed_s() -> None:
    first: tuple[Document, ...] = arithmetic_probes(9)
    assert arithmetic_probes(9) == first != arithmetic_probes(9, seed=1)
    with pytest.raises(UserError, match="n must be <= 190"):
        arithmetic_probes(191)
