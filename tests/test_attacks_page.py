"""docs/attacks.md is the tables', and every attack says where it comes from and what it may be
given.
"""

import inspect
from pathlib import Path

import pytest

from rayunlearn.attacks.documentation import attacks_page
from rayunlearn.attacks.panel import ATTACKS
from rayunlearn.attacks.table import GIVEN, KINDS, given_names

PAGE = Path(__file__).parents[1] / "docs" / "attacks.md"


def test_the_page_is_what_the_tables_make() -> None:
    assert PAGE.read_text(encoding="utf-8").rstrip() == attacks_page().rstrip(), (
        "run: python -m rayunlearn.attacks.documentation > docs/attacks.md"
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_kind_a_source_and_asks_for_what_there_is(name: str) -> None:
    row = ATTACKS[name]
    assert row.kind in KINDS and row.source and row.title and inspect.getdoc(row.function)
    assert set(given_names(row)) <= set(GIVEN)
    assert not row.companion or row.companion in ATTACKS
    assert f"| `{name}`" in attacks_page() and f"**{name}**. " in attacks_page()
