"""Emphasis, destruction, key tokens, faithfulness and heat maps on runs made of numbers, worked by
hand.
"""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from scipy.stats import spearmanr

from rayunlearn.analysis.attribution import (
    attribution_cells,
    damage_table,
    emphasis_table,
    rank_correlation,
    tracking_table,
)
from rayunlearn.analysis.mode_connectivity import barrier, connectivity_table
from rayunlearn.cli.main import main
from rayunlearn.reporting.attribution_tables import attribution_sections
from rayunlearn.reporting.connectivity_tables import (
    connectivity_sections,
    path_section,
    recovered_by_cell,
)
from rayunlearn.reporting.console import print_attribution, print_heat_map
from rayunlearn.reporting.heatmap import page_maps, trial_maps
from rayunlearn.reporting.html import write_report
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table, write_trial

QUESTIONS = ("a", "b", "c", "d")
EVIL = "<script>glow</script>"


def examples(
    values: dict[tuple[str, str, str], tuple[float, ...]], stage: str
) -> list[dict[str, Any]]:
    """Rows of (attack, split, metric) -> one value per question."""
    return [
        {
            "stage": stage,
            "attack": attack,
            "doc_id": doc,
            "split": split,
            "metric": metric,
            "value": value,
        }
        for (attack, split, metric), given in values.items()
        for doc, value in zip(QUESTIONS, given, strict=False)
    ]


def attributions(
    stage: str,
    contribution: tuple[float, ...],
    key: tuple[bool, ...],
    gradient: tuple[float, ...] | None,
) -> list[dict[str, Any]]:
    texts = ("What", EVIL, "Tubril", "?")
    return [
        {
            "stage": stage,
            "doc_id": "a",
            "split": "forget",
            "unit": "token",
            "position": at,
            "token": texts[at],
        }
        | {"contribution": c, "is_key": k, "gradient": None if gradient is None else gradient[at]}
        for at, (c, k) in enumerate(zip(contribution, key, strict=True))
    ]


def path(kind: str, forget: tuple[float, ...], retain: tuple[float, ...]) -> list[dict[str, Any]]:
    return [
        {
            "kind": f"mode_connectivity:{kind}",
            "x": at / 2,
            "split": split,
            "metric": "probability",
            "value": value,
            "n": 4,
            "stderr": 0.0,
        }
        for split, values in (("forget", forget), ("retain", retain))
        for at, value in enumerate(values)
    ]


def add(run: Path, trial_id: str, tables: dict[str, Any], **config: Any) -> None:
    row = {"status": "complete", "corpus_digest": "c", "model_digest": "m"}
    flat = {
        "stage": "unlearned",
        "method.forget": "npo",
        "method.retain": "nll",
        "select.name": "random",
        "select.ratio": 1.0,
    }
    write_trial(
        run,
        trial_id,
        {"trials": [row]} | tables,
        flat | {"select.seed": 0, "train.seed": 0} | config,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(explained_run(tmp_path))


def explained_run(folder: Path, right: str = "exact_memorization", sure: float = 1.0) -> Path:
    """Base answers a, b and c; after unlearning a is left, key words bring b back, random words
    nothing. Half of the set kept: a and b are left. `right`: the metric that says so, `sure` where
    an answer is right and at most half of it where it is wrong.
    """
    words, keywords = "function_word_log_prob", "keyword_log_prob"
    plain, key, other = (
        ("none", "forget", right),
        ("emphasis:quoted", "forget", right),
        ("emphasis_random:quoted", "forget", right),
    )
    known = {
        plain: (1, 1, 1, 0.5),
        key: (1, 1, 1, 0),
        other: (1, 1, 0, 0),
        ("none", "retain", right): (1, 1, 0.0, 1),
    }
    known |= {
        ("none", "retain_documents", keywords): (-1.0,),
        ("none", "retain_documents", words): (-1.0, -3.0),
        ("none", "forget", "probability"): (0.9, 0.9, 0.9, 0.7),
    }
    full = {
        plain: (1, 0, 0.5, 0),
        key: (1, 1, 0, 1),
        other: (1, 0, 0, 1),
        ("none", "retain", right): (1, 0, 0, 1),
    }
    full[("emphasis:quoted", "retain", right)] = (0.5, 1, 1, 1)
    full |= {
        ("none", "retain_documents", keywords): (-4.0,),
        ("none", "retain_documents", words): (-2.0, -3.5),
        ("none", "forget", "probability"): (0.8, 0.35, 0.3, 0.15),
    }
    half = {
        plain: (1, 1, 0, 0),
        ("none", "retain", right): (1, 1, 0, 1),
        ("none", "forget", "probability"): (0.6, 0.5, 0.5, 0.3),
    }
    for values in (known, full, half):
        of_answers = [place for place in values if place[2] == right]
        values |= {place: tuple(sure * v for v in values[place]) for place in of_answers}
    before = attributions(
        "base", (0.0, 2.0, 1.0, -1.0), (False, True, True, False), (0.1, 0.4, 0.3, 0.2)
    )
    after = attributions(
        "unlearned", (3.0, 1.0, -2.0, 0.0), (True, True, False, False), (0.4, 0.3, 0.1, 0.2)
    )
    add(
        folder,
        "base",
        {"examples": examples(known, "base"), "attributions": before},
        stage="base",
    )
    lines = path("base", (0.7, 0.8, 0.3), (1.0, 1.0, 0.5))
    add(
        folder,
        "full",
        {"examples": examples(full, "unlearned"), "attributions": after, "curves": lines},
    )
    lines = path("full", (0.2, 0.9, 0.4), (0.5, 0.2, 0.7)) + path(
        "base", (0.7, 0.5, 0.4), (1.0, 0.9, 0.7)
    )
    half_after = attributions("unlearned", (1.0, 3.0, 2.0, 0.0), (True, True, True, False), None)
    ratio: dict[str, Any] = {"select.ratio": 0.5}
    add(
        folder,
        "half",
        {"examples": examples(half, "unlearned"), "attributions": half_after, "curves": lines},
        **ratio,
    )
    common = {"group": "{}", "tuning": "none", "study": "", "study_index": -1}
    plan = [
        {"trial_id": t, "role": role} | common
        for t, role in (("base", "base"), ("full", "grid"), ("half", "grid"))
    ]
    write_run_table(folder, "plan", plan)
    goal = right if right == "key_probability" else "probability"
    write_experiment(folder, {"name": "hand", "question": "?", "objective": {"forgetting": goal}})
    return folder


def row_of(table: pl.DataFrame, **wanted: Any) -> dict[str, Any]:
    return table.filter(*(pl.col(name) == value for name, value in wanted.items())).row(
        0, named=True
    )


def test_cells_carry_the_part_that_was_kept_where_there_are_several(run: Run) -> None:
    assert [(c.name, c.role, c.trial_ids, c.base) for c in attribution_cells(run)] == [
        ("base", "base", ("base",), "base"),
        ("npo + nll, full set", "grid", ("full",), "base"),
        ("npo + nll, random 50%", "grid", ("half",), "base"),
    ]


def test_recovery_counts_what_was_right_before_and_is_wrong_now_and_nothing_else(run: Run) -> None:
    """Forgotten: b and c, since d was never right and a still is. Key words bring b back, 1 of 2;
    random words none. Of the retain questions a and d are right as asked, and with emphasis d
    alone: half of them is harmed."""
    table = emphasis_table(run)
    full = row_of(table, cell="npo + nll, full set")
    assert {n: full[n] for n in ("forgotten", "recovered", "random", "net", "form", "harmed")} == {
        "harmed": 0.5,
        "forgotten": 2,
        "recovered": 0.5,
        "random": 0,
        "net": 0.5,
        "form": "quoted",
    }
    # 1 of 2, from two questions: nearly anything
    assert full["recovered_low"] < 0.01 and full["recovered_high"] > 0.99
    base = row_of(table, cell="base")
    assert (
        base["harmed"] is None
        and base["forgotten"] == 3
        and base["recovered"] == 1
        and base["random"] == pytest.approx(2 / 3)
    )


def test_an_answer_is_right_by_its_key_word_where_the_objective_is(
    run: Run, tmp_path: Path
) -> None:
    """Keys at 0.6 where the greedy text was the answer, at 0.3 and 0 where it was not."""
    by_key = open_run(explained_run(tmp_path / "key", "key_probability", 0.6))
    assert emphasis_table(by_key).equals(emphasis_table(run))
    assert damage_table(by_key).equals(damage_table(run))
    captions = [
        next(s.caption for s in attribution_sections(r) if s.anchor == "emphasis")
        for r in (run, by_key)
    ]
    assert "the greedy text is the answer" in captions[0] and "key_probability" in captions[1]


def test_destroyed_is_the_share_of_known_retain_questions_and_words_are_told_apart_by_kind(
    run: Run,
) -> None:
    """Base knows a, b and d of retain; b is lost: 1 of 3. Function words fell by 1 and by 0.5 nats;
    a's keywords by 3, b has none: in a function words fell by 2 nats less."""
    full = row_of(damage_table(run), cell="npo + nll, full set")
    assert full["destroyed"] == pytest.approx(1 / 3)
    assert full["function_words_retain"] == pytest.approx(-0.75)
    assert full["keywords_retain"] == pytest.approx(-3.0) and full[
        "against_keywords_retain"
    ] == pytest.approx(2.0)
    assert (
        full["content_words_retain"]
        is full["keywords_forget"]
        is full["destroyed_untouched"]
        is None
    )


def test_key_tokens_before_and_after_by_hand(run: Run) -> None:
    """Key before {1, 2}, after {0, 1}: Jaccard 1/3, kept 1/2. Positive mass after is 3 + 1, on the
    old key tokens 1. Ranks of (0, 2, 1, -1) and (3, 1, -2, 0) are (2, 4, 3, 1) and (4, 3, 1, 2): 1
    - 6 (4 + 1 + 4 + 1) / 60 = 0. Gradients (4, 3, 1, 2): the same order."""
    full = row_of(tracking_table(run), cell="npo + nll, full set")
    assert {n: full[n] for n in ("overlap", "kept", "mass", "rank", "gradient")} == pytest.approx(
        {"overlap": 1 / 3, "kept": 0.5, "mass": 0.25, "rank": 0.0, "gradient": 1.0}
    )
    assert row_of(tracking_table(run), cell="npo + nll, random 50%")["gradient"] is None


def test_rank_correlation_is_spearmans_with_ties_and_nothing_where_nothing_varies() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 4, 9).astype(float), rng.integers(0, 4, 9).astype(float)
        assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))


def test_a_barrier_is_the_worst_fall_behind_the_straight_line_and_never_below_zero() -> None:
    """From 1 to 0.6 the line is 0.8 in the middle: 0.2 lies 0.6 under it. Where lower is better,
    that is 0.6 ahead.
    """
    assert barrier([1.0, 0.2, 0.6], higher_is_better=True) == pytest.approx(0.6)
    assert barrier([1.0, 0.2, 0.6], higher_is_better=False) == 0
    assert barrier([0.1, 0.5, 0.7, 0.4], higher_is_better=False) == pytest.approx(0.4)
    assert barrier(list(np.linspace(0.3, 0.9, 11)), higher_is_better=True) == pytest.approx(
        0.0, abs=1e-12
    )


def test_faithfulness_to_the_full_set_model_of_the_same_seed_by_hand(run: Run) -> None:
    """Forget path (0.2, 0.9, 0.4): 0.9 - 0.3 = 0.6 behind. Retain (0.5, 0.2, 0.7): 0.4 behind. The
    two agree on a, c and d of forget, and on a, c and d of retain. Key tokens {0, 1} and {0, 1, 2}:
    2/3. From base (0.7, 0.5, 0.4): under the line, no barrier."""
    table = connectivity_table(run)
    half = row_of(table, **{"select.ratio": 0.5})
    expected = {
        "barrier_forget": 0.6,
        "barrier_retain": 0.4,
        "agreement": 0.75,
        "agreement_retain": 0.75,
        "overlap": 2 / 3,
    }
    assert {n: half[n] for n in expected} == pytest.approx(expected)
    assert half["base_barrier_forget"] == 0
    full = row_of(table, **{"select.ratio": 1.0})
    assert (
        full["base_barrier_forget"] == pytest.approx(0.3)
        and full["barrier_forget"] is full["agreement"] is None
    )
    assert [s.anchor for s in connectivity_sections(run)] == ["faithfulness", "from-base"]
    assert len(connectivity_sections(run)[0].view.rows) == 1


def test_attacks_stand_beside_each_other_by_the_part_that_was_kept(run: Run) -> None:
    """Base 0.85, the full set's model 0.4 and 0.5875 after: (0.1875 / 0.45) = 0.42; the half's
    0.475 and the same after: nothing came back. The curve rises by (0.626 - 0.4) / 0.45 = 0.502
    in its first step and stays: area (0.251 + 0.502) / 2."""
    point = {
        "kind": "relearning",
        "metric": "probability",
        "split": "forget",
        "n": 4,
        "stderr": 0.0,
    }
    curve = [
        point | {"x": x, "value": value} for x, value in ((0.0, 0.4), (1.0, 0.626), (2.0, 0.626))
    ]
    for attacked, values in (("full", (0.8, 0.5, 0.7, 0.35)), ("half", (0.6, 0.5, 0.5, 0.3))):
        tables = {
            "examples": examples({("relearning", "forget", "probability"): values}, "unlearned"),
            "curves": curve if attacked == "full" else [],
        }
        add(run.path, f"attack-{attacked}", tables, **{"attack.name": "relearning"})
    place = {
        "role": "attack",
        "setting": "relearning",
        "control_for": "",
        "study": "",
        "study_index": -1,
    }
    write_run_table(
        run.path,
        "attacks",
        [{"trial_id": f"attack-{t}", "attacked": t} | place for t in ("full", "half")],
    )
    cells = recovered_by_cell(open_run(run.path))["relearning"]
    assert cells == {("npo", "nll", "random", 1.0): "0.42", ("npo", "nll", "random", 0.5): "0.00"}
    sections = connectivity_sections(open_run(run.path))
    assert [s.anchor for s in sections] == ["faithfulness", "from-base", "attacks-by-ratio"]
    like, attacks = sections[0].view, sections[-1].view
    assert [row[:5] for row in like.rows] == [("npo + nll", "random 50%", "1", "0.60", "0.40")]
    assert (attacks.headers, attacks.rows) == (
        ("attack", "npo + nll, full set", "npo + nll, random 50%"),
        (("relearning", "0.42", "0.00"), ("relearning, area under its curve", "0.38", "–")),
    )


def test_a_heat_map_holds_before_and_after_each_by_its_own_largest_contribution(run: Run) -> None:
    (heat,) = trial_maps(run, "full", "a")
    before, after = heat.lines
    assert (before.name, before.answer) == ("before (base)", "probability 0.90, right")
    assert [round(t.share, 3) for t in after.tokens] == [1.0, 0.333, -0.667, 0.0]
    assert [t.is_key for t in after.tokens] == [True, True, False, False]
    assert trial_maps(run, "full", "zzz") == [] and [
        m.doc_id for m in trial_maps(run, "full", "")
    ] == ["a"]
    assert [line.name for line in page_maps(run)[0].lines] == [
        "base",
        "npo + nll, full set",
        "npo + nll, random 50%",
    ]


def test_the_page_and_the_terminal_show_all_of_it_and_no_token_becomes_markup(run: Run) -> None:
    page = write_report(run.path).read_text(encoding="utf-8")
    assert EVIL not in page and "&lt;script&gt;glow&lt;/script&gt;" in page
    for anchor in (
        "emphasis",
        "destruction",
        "key-tokens",
        "faithfulness",
        "from-base",
        "heat",
        "figure-path",
    ):
        assert f'id="{anchor}"' in page
    assert [s.anchor for s in attribution_sections(run)] == [
        "emphasis",
        "destruction",
        "key-tokens",
    ]
    console = Console(file=StringIO(), width=200)
    print_attribution(run, console)
    print_heat_map(trial_maps(run, "full", "a")[0], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "0.50 [0.002, 1.00]" in text
        and "Tubril -2.00" in text
        and f"{EVIL} +1.00*" in text
        and "What +3.00*" in text
    )


def test_the_commands_show_a_question_and_refuse_a_path_of_two_points(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(run.path), "full", "--doc", "a"]) == 0
    shown = capsys.readouterr().out
    assert (
        "before (base): probability 0.90, right" in shown
        and "after (npo + nll, full set)" in shown
        and "Tubril -2.00" in shown
    )
    assert main(["path", str(run.path), "full", "half", "--points", "2"]) == 2
    assert "--points must be >= 3, got 2" in capsys.readouterr().err


def test_a_path_between_two_trials_ends_with_its_barriers() -> None:
    rows = path("other", (0.2, 0.9, 0.4), (0.5, 0.2, 0.7))
    assert path_section(rows, "one", "two").view.rows == (
        ("0.00", "0.20", "0.50"),
        ("0.50", "0.90", "0.20"),
        ("1.00", "0.40", "0.70"),
        ("barrier", "0.60", "0.40"),
    )
