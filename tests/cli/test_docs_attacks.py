"""docs/attacks.md is the tables', and every attack says where it comes from and what it may be
given.
"""

import inspect
from pathlib import Path

import pytest

from rayunlearn.attacks.base import ATTACK_INPUTS, ATTACK_KINDS
from rayunlearn.attacks.table import ATTACKS
from rayunlearn.cli.docs_attacks import attacks_page

PAGE = Path(__file__).parents[2] / "docs" / "attacks.md"


def test_the_page_is_what_the_tables_make() -> None:
    assert PAGE.read_text(encoding="utf-8").rstrip() == attacks_page().rstrip(), (
        "run: python -m rayunlearn.cli.docs_attacks > docs/attacks.md"
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_kind_a_source_and_asks_for_what_there_is(name: str) -> None:
    row = ATTACKS[name]
    assert row.kind in ATTACK_KINDS and row.source and row.title and inspect.getdoc(row.function)
    assert set(row.inputs) <= set(ATTACK_INPUTS)
    assert not row.companion or row.companion in ATTACKS
    assert f"| `{name}`" in attacks_page() and f"**{name}**. " in attacks_page()
