"""The frontier on cells whose truth is known, and on a made run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rayunlearn.analysis.equivalence import (
    CoresetCell,
    EquivalenceCriterion,
    coreset_cells,
    frontier,
    frontier_of_run,
    part_verdict,
    selector_label,
)
from rayunlearn.analysis.targets import Target
from rayunlearn.errors import UserError
from rayunlearn.reporting.sentences import frontier_in_words
from rayunlearn.storage.run import open_run
from tests import synthetic

HARD = np.random.default_rng(9).normal(0, 0.1, 200)
STANDARD = EquivalenceCriterion(margin=0.05)


def made(
    ratio: float,
    left: float,
    *,
    useful: float = 0.9,
    seeds: int = 4,
    spread: float = 0.005,
    selector: str = "random",
    unmeasured: int = 0,
) -> CoresetCell:
    """A cell with that mean forget probability and utility;
    200 documents of their own difficulty.
    """
    generator = np.random.default_rng([round(1000 * ratio), round(1000 * left), seeds])
    shifts = generator.normal(0, spread, (2, seeds, 1))
    both = [
        mean + HARD + shift + generator.normal(0, 0.05, (seeds, 200))
        for mean, shift in zip((left, useful), shifts, strict=True)
    ]
    return CoresetCell(
        setting="",
        method="npo + nll",
        selector=selector,
        ratio=ratio,
        n_kept=200 * ratio,
        forgetting=both[0],
        utility=both[1],
        unmeasured=unmeasured,
    )


BASE = {"": made(0, 0.95, seeds=1)}


def only(table: pl.DataFrame) -> dict:
    return table.row(0, named=True) if table.height == 1 else pytest.fail(f"{table.height} rows")


def test_the_smallest_ratio_that_is_the_same_is_found_and_the_next_says_why_not() -> None:
    cells = [made(1, 0.1), made(0.5, 0.1), made(0.25, 0.105), made(0.05, 0.4), made(0.01, 0.1)]
    row = only(frontier(cells, BASE, STANDARD))
    assert (row["verdict"], row["ratio"], row["n_kept"], row["over"]) == (
        "shown",
        0.25,
        50.0,
        "seeds and documents",
    )
    assert (row["stopped_at"], row["stopped_by"]) == (0.05, "forgetting") and row[
        "difference"
    ] == pytest.approx(0.3, abs=0.02)
    assert row["documents_needed"] is None and row["seeds_needed"] is None
    sentence = frontier_in_words(frontier(cells, BASE, STANDARD), STANDARD)[0]
    assert (
        sentence.startswith("npo + nll, random: 0.25 of the forget set is enough within 0.05")
        and "outside 0.05" in sentence
    )


def test_a_ratio_that_harms_more_is_not_the_same_though_it_forgets_as_much() -> None:
    row = only(frontier([made(1, 0.1), made(0.25, 0.1, useful=0.7)], BASE, STANDARD))
    assert (row["verdict"], row["ratio"], row["stopped_by"]) == ("not shown", None, "utility")


def test_better_is_a_difference_unless_it_is_asked_to_count() -> None:
    cells = [made(1, 0.1, useful=0.7), made(0.25, 0.1, useful=0.9)]
    assert only(frontier(cells, BASE, STANDARD))["verdict"] == "not shown"
    assert (
        only(frontier(cells, BASE, EquivalenceCriterion(margin=0.05, better_counts=True)))["ratio"]
        == 0.25
    )


def test_noise_that_hides_a_small_difference_says_how_many_seeds_would_decide() -> None:
    noisy = [made(1, 0.1, spread=0.05, seeds=3), made(0.25, 0.1, spread=0.05, seeds=3)]
    row = only(frontier(noisy, BASE, STANDARD))
    assert row["verdict"] == "not shown"
    assert row["seeds_needed"] is not None and row["seeds_needed"] > 3
    assert (
        f"{row['seeds_needed']} seeds would decide"
        in frontier_in_words(frontier(noisy, BASE, STANDARD), STANDARD)[0]
    )


def test_a_full_set_that_forgets_nothing_is_no_standard() -> None:
    row = only(frontier([made(1, 0.93), made(0.25, 0.93)], BASE, STANDARD))
    assert (row["verdict"], row["ratio"]) == ("full set does not forget", None)


def test_a_ruined_full_set_is_no_standard_though_its_parts_equal_it() -> None:
    """Gold leaves .2 on the same documents. Full set and part leave .05: equal to each other, and
    .15 below gold. At .2 they are gold's equals; at .18 they are below it, but within the margin.
    """
    gold = Target("gold", 0.2 + HARD)
    for left, verdict in ((0.05, "full set over-forgets"), (0.2, "shown"), (0.18, "shown")):
        cells = [replace(made(ratio, left), target=gold) for ratio in (1, 0.5)]
        row = only(frontier(cells, BASE, STANDARD))
        assert row["verdict"] == verdict, left
    cells = [replace(made(ratio, 0.05), target=gold) for ratio in (1, 0.5)]
    table = frontier(cells, BASE, STANDARD)
    assert only(table)["difference"] == pytest.approx(-0.15, abs=0.02)
    assert "the full set is over-forgotten" in frontier_in_words(table, STANDARD)[0]
    # without a target nothing is known to be below
    assert only(frontier([made(1, 0.05), made(0.5, 0.05)], BASE, STANDARD))["verdict"] == "shown"


@pytest.mark.parametrize(
    ("part", "full", "verdict"),
    [
        (made(0.5, 0.1), made(1, 0.11), "equal"),
        (made(0.5, 0.6), made(1, 0.1), "different"),
        # means .5 apart, but two seeds that differ by as much
        (made(0.5, 0.6, seeds=2, spread=0.5), made(1, 0.1, seeds=2, spread=0.5), "not decided"),
        # shown to differ, and by less than the margin
        (made(0.5, 0.14, spread=0), made(1, 0.1, spread=0), "equal"),
        (made(0.5, 0.1, useful=0.6), made(1, 0.1), "different"),
        (made(0.5, 0.1, unmeasured=1), made(1, 0.1), "not measured"),
    ],
)
def test_a_part_is_equal_different_or_not_decided(
    part: CoresetCell, full: CoresetCell, verdict: str
) -> None:
    assert part_verdict(part, full, EquivalenceCriterion(margin=0.1))["verdict"] == verdict


def test_what_could_not_be_measured_is_never_equivalent() -> None:
    row = only(frontier([made(1, 0.1), made(0.25, 0.1, unmeasured=1)], BASE, STANDARD))
    assert (row["verdict"], row["stopped_by"]) == ("not shown", "unmeasured trials")
    assert (
        only(frontier([made(1, 0.1, unmeasured=1), made(0.25, 0.1)], BASE, STANDARD))["verdict"]
        == "no full set"
    )
    assert only(frontier([made(0.25, 0.1)], BASE, STANDARD))["verdict"] == "no full set"


def test_more_families_make_the_level_stricter() -> None:
    """One seed and a p between alpha / 20 and alpha: enough for one family, not for twenty."""
    full = made(1, 0.1, seeds=1, spread=0)
    small = made(0.25, 0.1, seeds=1, spread=0)
    margin = 0.02
    alone = only(frontier([full, small], BASE, EquivalenceCriterion(margin=margin)))
    assert alone["verdict"] == "shown" and alone["over"] == "documents"
    strict = EquivalenceCriterion(margin=margin, alpha=alone["p"] * 10)
    many = [made(0.25, 0.1, seeds=1, spread=0, selector=f"s{i}") for i in range(20)]
    assert set(frontier([full, *many], BASE, strict)["verdict"]) == {"not shown"}
    assert only(frontier([full, small], BASE, strict))["verdict"] == "shown"


def test_a_margin_or_a_level_that_means_nothing_is_told() -> None:
    with pytest.raises(UserError, match=r"margin must be > 0, got 0"):
        EquivalenceCriterion(margin=0)
    with pytest.raises(UserError, match=r"alpha must be in \(0, 0.5\), got 0.9"):
        EquivalenceCriterion(margin=0.1, alpha=0.9)


def test_a_run_s_cells_hold_its_trials_values(tmp_path: Path) -> None:
    """Two methods, two selectors, three ratios under one and the full set that the selectors share;
    three seeds each.
    """
    run = open_run(synthetic.write_run(tmp_path)).in_memory()
    cells, base = coreset_cells(run)
    assert len(cells) == 2 * (1 + 2 * 3)
    full = next(c for c in cells if c.method == "rmu + nll" and c.ratio == 1)
    assert full.forgetting.shape == (3, 30) and full.forgetting.mean() == pytest.approx(
        0.1, abs=0.02
    )
    assert base[""].forgetting.mean() == pytest.approx(0.97, abs=0.02)
    failed = next(
        c for c in cells if c.method == "npo + nll" and c.selector == "min_k" and c.ratio == 0.01
    )
    assert failed.unmeasured == 1 and len(failed.forgetting) == 2


def test_the_frontier_of_a_run_answers_per_method_and_selector(tmp_path: Path) -> None:
    """The run is made so that 25% chosen at random forgets as the full set does (0.11 against 0.1)
    and 5% does not (0.45).
    """
    table = frontier_of_run(
        open_run(synthetic.write_run(tmp_path)).in_memory(), EquivalenceCriterion(margin=0.1)
    )
    assert table.height == 4
    row = table.filter(pl.col("method") == "rmu + nll", pl.col("selector") == "random").row(
        0, named=True
    )
    assert (row["verdict"], row["ratio"], row["stopped_at"]) == ("shown", 0.25, 0.05)
    assert len(frontier_in_words(table, EquivalenceCriterion(margin=0.1))) == 4


def test_the_full_set_is_found_though_its_parts_have_settings_of_choosing() -> None:
    """The full set is never chosen, so it has the default extractor where its parts have another;
    of a text arm the extractor stays.
    """
    around = "data.name domain"
    full = replace(
        made(1, 0.2), setting=f"{around}, select.extractor tfidf", full_set_setting=around
    )
    part = replace(
        made(0.25, 0.2), setting=f"{around}, select.extractor log_odds", full_set_setting=around
    )
    base = {part.setting: made(0, 0.95, seeds=1)}
    table = frontier([full, part], base, EquivalenceCriterion(margin=0.1))
    assert only(table)["verdict"] == "shown"
    assert frontier_in_words(table, EquivalenceCriterion(margin=0.1))[0].startswith(
        "npo + nll, random, data.name domain: 0.25 of the forget set is enough"
    )
    settings = {
        "select.name": ["random"],
        "select.extractor": ["log_odds"],
        "data.name": ["domain"],
    }
    assert selector_label(pl.DataFrame(settings)) == ["select.name", "select.extractor"]
    assert selector_label(pl.DataFrame(settings | {"select.text": ["keywords_only"]})) == [
        "select.name"
    ]


def test_a_sentence_names_what_tells_a_setting_from_others_of_its_data() -> None:
    """Two corpora with a rate of their own each: the rate is not said. Two rates on one corpus: it
    is.
    """
    rates = (
        "data.name people, train.learning_rate 0.1",
        "data.name domain, train.learning_rate 0.2",
    )
    more = "data.name people, train.learning_rate 0.3"
    for settings, said in (
        (rates, "data.name people: "),
        ((*rates, more), "data.name people, train.learning_rate 0.1: "),
    ):
        cells = [
            replace(made(ratio, 0.2), setting=setting, full_set_setting=setting)
            for setting in settings
            for ratio in (1, 0.25)
        ]
        table = frontier(
            cells,
            {setting: made(0, 0.95, seeds=1) for setting in settings},
            EquivalenceCriterion(margin=0.1),
        )
        lines = frontier_in_words(table, EquivalenceCriterion(margin=0.1))
        assert [line for line in lines if line.startswith(f"npo + nll, random, {said}")]
