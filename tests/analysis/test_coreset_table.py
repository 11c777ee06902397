"""Means, the coreset table and the front, each against a hand-worked case or brute force."""

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from rayunlearn.analysis import coreset_table, intervals, labels, pareto, run_frames
from rayunlearn.analysis.equal_retention import method_ranking
from rayunlearn.analysis.run_frames import trial_table
from rayunlearn.planning.attack_planner import attack_targets
from rayunlearn.reporting.console import print_coreset_table, print_trial
from rayunlearn.reporting.summary import summary_block
from rayunlearn.reporting.tables import coreset_view
from rayunlearn.storage.parquet import frame_of
from rayunlearn.storage.run import open_run, write_experiment, write_run_table
from tests import synthetic

SCHEMA = {"f": pl.Float64, "u": pl.Float64}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return coreset_table.coreset_table(
        open_run(synthetic.write_run(tmp_path_factory.mktemp("run"))).in_memory()
    )


def cell(table: pl.DataFrame, method: str, name: str, ratio: float) -> dict:
    rows = table.filter(
        pl.col("role") == "grid",
        pl.col("method.forget") == method,
        pl.col("select.name") == name,
        pl.col("select.ratio") == ratio,
    )
    return rows.row(0, named=True) if rows.height == 1 else pytest.fail(f"{rows.height} rows")


def test_a_mean_of_four_documents_by_hand() -> None:
    """Values 1, 2, 3, 6 and a null: mean 3, sd = sqrt((4 + 1 + 0 + 9) / 3) = sqrt(14 / 3), stderr =
    sd / 2.
    """
    common = {"trial_id": "t", "stage": "base", "attack": "none", "split": "forget", "metric": "m"}
    rows = [{**common, "doc_id": str(i), "value": v} for i, v in enumerate([1, 2, 3, 6, None])]
    rows += [
        {**common, "split": "one", "doc_id": "x", "value": 0.5},
        {**common, "split": "none", "doc_id": "x"},
    ]
    made = {
        row["split"]: row
        for row in intervals.summarise_examples(frame_of("examples", rows), step=7).to_dicts()
    }
    assert made["forget"]["n"] == 4 and made["forget"]["value"] == 3 and made["forget"]["step"] == 7
    assert made["forget"]["stderr"] == pytest.approx((14 / 3) ** 0.5 / 2)
    assert made["one"]["n"] == 1 and made["one"]["stderr"] is None
    assert made["none"]["n"] == 0 and made["none"]["value"] is None
    assert frame_of("evals", list(made.values())).height == 3
    # the caller's step is not overwritten with null
    assert "step" not in intervals.summarise_examples(frame_of("examples", rows)).columns


def test_the_table_has_one_row_per_cell_in_reading_order(table: pl.DataFrame) -> None:
    """base, gold, a control per method, and per method the shared full set + 2 selectors x 3
    ratios.
    """
    assert table["role"].to_list() == ["base", "gold", "control", "control"] + ["grid"] * 14
    assert table["method"].unique(maintain_order=True).to_list() == [
        "base",
        "gold",
        "control: nll",
        "npo + nll",
        "rmu + nll",
    ]
    assert [
        labels.control_label(g) for g in table.filter(pl.col("role") == "control")["group"]
    ] == [
        "npo",
        "rmu",
    ]
    npo = table.filter(pl.col("method.forget") == "npo")
    assert npo["select.ratio"].to_list() == [1.0, 0.25, 0.05, 0.01, 0.25, 0.05, 0.01]


def test_the_table_says_what_was_measured(table: pl.DataFrame) -> None:
    row = cell(table, "rmu", "random", 0.05)
    assert (
        row["forgetting"] == pytest.approx(0.45, abs=0.03)
        and row["forgetting_low"] < row["forgetting"] < row["forgetting_high"]
    )
    assert (row["seeds"], row["n_kept"], row["coverage"], row["interval_over"]) == (
        3,
        10,
        0.6,
        "seeds and documents",
    )
    assert (
        row["choice_forget"] < 0.5 and row["choice_retain"] == 1.0 and row["optimizer_steps"] == 100
    )
    base, gold = (
        table.filter(pl.col("role") == role).row(0, named=True) for role in ("base", "gold")
    )
    assert row["unlearning"] == pytest.approx(
        (base["forgetting"] - row["forgetting"]) / (base["forgetting"] - gold["forgetting"])
    )
    assert base["interval_over"] == "documents" and base["unlearning"] is None


def test_failed_and_collapsed_trials_are_counted_and_not_hidden(table: pl.DataFrame) -> None:
    failed, collapsed = cell(table, "npo", "min_k", 0.01), cell(table, "rmu", "min_k", 0.05)
    assert (failed["trials"], failed["seeds"], failed["share_failed"]) == (
        3,
        2,
        pytest.approx(1 / 3),
    )
    assert (collapsed["seeds"], collapsed["share_collapsed"]) == (3, pytest.approx(1 / 3))
    assert collapsed["utility"] == pytest.approx(0.95 - 0.9 / 3, abs=0.03)


def test_a_setting_that_varies_becomes_a_column_and_meets_its_own_base(tmp_path: Path) -> None:
    """Two corpora whose base models differ: each cell's fraction of the gap closed uses the base of
    its own corpus.
    """
    plan = []
    for redundancy, left in ((4, 0.5), (20, 0.1)):
        common = {"data.redundancy": redundancy}
        for role, value in (("base", 0.9 if redundancy == 4 else 0.7), ("gold", 0.1)):
            plan.append(
                synthetic.plan_row(
                    synthetic.add_trial(
                        tmp_path, {**common, "stage": role}, {"forget": value, "retain": 0.9}
                    ),
                    role,
                    "{}",
                )
            )
        group = json.dumps({**common, "method.forget": "npo"})
        for weight in (1.0, 2.0):
            trial_id = synthetic.add_trial(
                tmp_path,
                {
                    **common,
                    "method.retain_weight": weight,
                    "train.learning_rate": redundancy / 1000,
                },
                {"forget": left, "retain": 0.9},
            )
            plan.append(synthetic.plan_row(trial_id, "grid", group))
    write_run_table(tmp_path, "plan", plan)
    write_experiment(tmp_path, synthetic.EXPERIMENT)
    table = coreset_table.coreset_table(open_run(tmp_path))
    # the learning rate was tuned, not compared
    assert coreset_table.extra_settings(table) == ["data.redundancy", "method.retain_weight"]
    grid = table.filter(pl.col("role") == "grid").sort("data.redundancy")
    assert grid.height == 4 and table.filter(pl.col("role") == "base")[
        "data.redundancy"
    ].to_list() == [4, 20]
    assert grid["unlearning"].to_list() == pytest.approx([0.5, 0.5, 1.0, 1.0], abs=0.05)


def test_a_table_of_a_run_that_has_only_a_plan_is_empty(tmp_path: Path) -> None:
    write_run_table(tmp_path, "plan", [synthetic.plan_row("a", "grid", "{}")])
    made = coreset_table.coreset_table(open_run(tmp_path))
    assert made.height == 0 and {
        "forgetting",
        "unlearning_low",
        "select.ratio",
        "share_failed",
    } <= set(made.columns)


def test_a_run_without_gold_has_no_share_of_the_way(tmp_path: Path) -> None:
    base = synthetic.add_trial(tmp_path, {"stage": "base"}, {"forget": 0.9, "retain": 0.9})
    other = synthetic.add_trial(tmp_path, {}, {"forget": 0.4, "retain": 0.9})
    write_run_table(
        tmp_path,
        "plan",
        [synthetic.plan_row(base, "base", "{}"), synthetic.plan_row(other, "grid", "{}")],
    )
    grid = coreset_table.coreset_table(open_run(tmp_path)).filter(pl.col("role") == "grid")
    assert grid["unlearning"].to_list() == [None] and grid["forgetting"][0] == pytest.approx(
        0.4, abs=0.03
    )


def test_the_front_is_what_brute_force_finds_ties_included() -> None:
    generator = np.random.default_rng(0)
    for lower in (True, False):
        points = generator.integers(0, 8, (60, 2)).astype(float)
        sign = 1 if lower else -1
        better = [
            any(
                (sign * (q[0] - p[0]) <= 0) and q[1] >= p[1] and tuple(q) != tuple(p)
                for q in points
            )
            for p in points
        ]
        expected = sorted(tuple(p) for p, beaten in zip(points, better, strict=True) if not beaten)
        front = pareto.pareto_front(
            pl.DataFrame(points, schema=SCHEMA, orient="row"), "f", "u", lower_forgets=lower
        )
        assert sorted(front.rows()) == expected


def test_points_without_a_value_are_not_on_the_front() -> None:
    frame = pl.DataFrame(
        {"f": [0.1, None, float("nan"), 0.2], "u": [0.5, 0.9, 0.9, None]}, schema=SCHEMA
    )
    assert pareto.pareto_front(frame, "f", "u").rows() == [(0.1, 0.5)]


def test_best_so_far_counts_feasible_rows_only() -> None:
    frame = pl.DataFrame(
        {"i": [2, 0, 1, 3], "v": [0.3, 0.1, 0.5, 0.2], "ok": [True, False, True, False]}
    )
    assert pareto.best_so_far(frame, order="i", value="v", feasible="ok")[
        "best_so_far"
    ].to_list() == [None, 0.5, 0.3, 0.3]


def test_an_error_metric_is_forgotten_upwards() -> None:
    metrics = [{"name": "perplexity", "direction": "lower"}]
    assert not run_frames.lower_is_forgotten(
        {"objective": {"forgetting": "perplexity"}, "metrics": metrics}
    )
    assert run_frames.lower_is_forgotten({"metrics": metrics})


def test_what_unlearning_was_never_shown_stands_beside_utility_where_the_data_has_it(
    tmp_path: Path, table: pl.DataFrame
) -> None:
    """Base measured on three splits, thirty documents around 0.6 with standard deviation 0.05: the
    mean is within 0.05 of it.
    """
    run = synthetic.write_run(tmp_path / "run")
    synthetic.add_trial(
        run, {"stage": "base"}, {"forget": 0.97, "retain": 0.96, "untouched": 0.6}, coverage=None
    )
    row = coreset_table.coreset_table(open_run(run)).row(0, named=True)
    assert (
        row["role"] == "base"
        and abs(row["untouched"] - 0.6) < 0.05
        and row["untouched_low"] < row["untouched"] < row["untouched_high"]
    )
    assert table["untouched"].null_count() == table.height
    assert not any(header.startswith("untouched") for header in coreset_view(table, {}).headers)
    assert any(
        header.startswith("untouched")
        for header in coreset_view(coreset_table.coreset_table(open_run(run)), {}).headers
    )


@pytest.fixture
def ruined(tmp_path: Path) -> Path:
    """Base, gold at .3, a method that ends there and one that is ruined; the objective aims at
    gold.
    """
    trials = {
        "base": synthetic.add_trial(tmp_path, {"stage": "base"}, {"forget": 0.9, "retain": 0.9}),
        "gold": synthetic.add_trial(tmp_path, {"stage": "gold"}, {"forget": 0.3, "retain": 0.9}),
    }
    rows = [synthetic.plan_row(trial_id, role, "{}") for role, trial_id in trials.items()]
    for forget, left in (("npo", 0.0), ("simnpo", 0.32)):
        for seed in (1, 2):
            settings = {"method.forget": forget, "train.seed": seed}
            values = {"forget": left, "retain": 0.9}
            trial_id = synthetic.add_trial(tmp_path, settings, values)
            rows.append(synthetic.plan_row(trial_id, "grid", "{}"))
    write_run_table(tmp_path, "plan", rows)
    goal = synthetic.EXPERIMENT["objective"] | {"target": "gold"}
    write_experiment(tmp_path, synthetic.EXPERIMENT | {"objective": goal})
    return tmp_path


def test_a_ruined_cell_is_marked_and_comes_after_one_that_equals_gold(ruined: Path) -> None:
    """The noise of the documents is cut off at 0, where the ruined one lies: mean .05 / sqrt(2 pi),
    .02, so it is .28 from gold; the other is .02 away, and its interval holds 0.
    """
    run = open_run(ruined).in_memory()
    grid = coreset_table.coreset_table(run).filter(pl.col("role") == "grid").sort("objective")
    assert grid["method.forget"].to_list() == ["simnpo", "npo"]
    assert grid["over_forgotten"].to_list() == [False, True]
    assert set(grid["aim"]) == {"gold"}
    assert grid["distance"].to_list() == pytest.approx([0.02, 0.28], abs=0.02)
    assert grid["above"].to_list() == pytest.approx([0.02, -0.28], abs=0.02)
    trials = trial_table(run).filter(pl.col("role") == "grid", pl.col("over_forgotten"))
    assert set(trials["method.forget"]) == {"npo"}
    ranks = method_ranking(run).filter(stage="unlearned")
    assert ranks.select("name", "rank", "over_forgotten").rows() == [
        ("simnpo + nll", 1.0, False),
        ("npo + nll", 2.0, True),
    ]


def test_best_is_the_trial_nearest_to_gold_and_pareto_leaves_the_ruined_out(ruined: Path) -> None:
    run = open_run(ruined).in_memory()
    methods = dict(trial_table(run).select("trial_id", "method.forget").iter_rows())
    assert {methods[t] for t in attack_targets(run, "pareto")} == {"simnpo"}
    best = [methods[t] for t in attack_targets(run, "best")]
    # one for each method: the nearest to gold first
    assert best == ["simnpo", "npo"]


def test_an_objective_without_target_orders_by_what_is_left_and_marks_all_the_same(
    ruined: Path,
) -> None:
    write_experiment(ruined, synthetic.EXPERIMENT)
    run = open_run(ruined).in_memory()
    grid = coreset_table.coreset_table(run).filter(pl.col("role") == "grid").sort("objective")
    assert grid["method.forget"].to_list() == ["npo", "simnpo"]
    assert grid["over_forgotten"].to_list() == [True, False]
    assert method_ranking(run).row(0, named=True)["name"] == "npo + nll"


def test_the_mark_is_said_on_the_terminal_in_the_brief_and_of_a_trial(ruined: Path) -> None:
    run, console = open_run(ruined), Console(record=True, width=150, file=io.StringIO())
    table = coreset_table.coreset_table(run)
    print_coreset_table(table, console, experiment=run.experiment)
    trial_id = trial_table(run).filter(pl.col("over_forgotten"))["trial_id"][0]
    print_trial(ruined, trial_id, console)
    text = console.export_text()
    assert "complete, over-forgotten" in " ".join(text.split())
    said = "over-forgotten, the whole 95% interval below that of a model that never saw the forget"
    assert f"{said} set: npo + nll, full set" in text
    assert f"trial {trial_id}: complete, over-forgotten" in " ".join(text.split())
    forgetting = summary_block(run, table, "left")
    assert forgetting.table is not None
    first, last = forgetting.table.rows[-2:]
    assert first[0] == "simnpo + nll" and "nearest to gold first" in forgetting.sentences[0]
    assert "over-forgotten" in " ".join(last) and "over-forgotten" not in " ".join(first)


def test_without_gold_a_cell_is_held_against_the_chance_level_on_base(tmp_path: Path) -> None:
    """Chance is what base leaves for the wrong options: here the same metric on documents at .3."""
    base = synthetic.add_trial(tmp_path, {"stage": "base"}, {"forget": 0.3, "retain": 0.9})
    low = synthetic.add_trial(tmp_path, {}, {"forget": 0.0, "retain": 0.9})
    roles = ((base, "base"), (low, "grid"))
    write_run_table(tmp_path, "plan", [synthetic.plan_row(t, r, "{}") for t, r in roles])
    metrics = [row | {"chance": "probability"} for row in synthetic.METRICS]
    goal = synthetic.EXPERIMENT["objective"] | {"target": "gold"}
    write_experiment(tmp_path, synthetic.EXPERIMENT | {"objective": goal, "metrics": metrics})
    row = coreset_table.coreset_table(open_run(tmp_path)).row(-1, named=True)
    assert (row["aim"], row["over_forgotten"]) == ("chance", True)
    assert row["distance"] == pytest.approx(0.28, abs=0.02)


def test_the_spread_between_searches_enters_the_interval_and_seeds_of_one_search_count_once(
    tmp_path: Path,
) -> None:
    """Two searches of two seeds each end at .2, .2 and .4, .4 on documents that are all alike. By
    hand: the means of the searches are .2 and .4, so the standard error is .1 with one degree of
    freedom, and not that of four trials, .058 with three. A trial that both found is in both means.
    """
    values = np.repeat([[0.2], [0.2], [0.4], [0.4]], 5, axis=1)
    row_of = {name: i for i, name in enumerate("abcd")}
    measured = run_frames.MetricValues(
        row_of, values, np.arange(5), tuple("12345"), {"a": (0,), "b": (0,), "c": (1,), "d": (1,)}
    )
    assert measured.rows("abcd").tolist() == [[pytest.approx(0.2)] * 5, [pytest.approx(0.4)] * 5]
    interval = intervals.mean_interval(measured.rows("abcd"))
    assert interval.low is not None
    assert interval.mean - interval.low == pytest.approx(12.706 * 0.1, rel=1e-3)
    shared = run_frames.MetricValues(
        row_of, values, np.arange(5), tuple("12345"), {"a": (0, 1), "c": (1,)}
    )
    assert shared.rows("ac")[:, 0] == pytest.approx([0.2, 0.3])
    assert measured.rows("ab").shape == (2, 5) and measured.n_measured("abx") == 2
