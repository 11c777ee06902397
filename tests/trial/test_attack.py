"""Attacks end to end on the trained synthetic dataset: what gold, which never saw the answers, may
tell, and that a seed says everything.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.attacks import quantization
from rayunlearn.config import Attack, Trial, Value
from rayunlearn.storage.run import open_run
from rayunlearn.trial import model_state
from rayunlearn.trial.attack import run_attack_or_trial
from rayunlearn.trial.workspace import Workspace, validate_trial

TELL_NOTHING: tuple[tuple[str, dict[str, Value]], ...] = (
    ("few_shot_retain", {}),
    ("few_shot_neighbours", {}),
    ("conversation", {}),
    ("variables", {}),
    ("jailbreak_prefix", {}),
    ("round_to_nearest", {}),
    ("unrelated_training", {"steps": 10}),
    ("heldout_relearning", {"steps": 10}),
)


@pytest.fixture
def workspace(domain_workspace: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    """The domain dataset's with a cache of the test's own."""
    yield replace(domain_workspace, cache=tmp_path / "cache")
    model_state.load_model_state.cache_clear()


def attacked(
    workspace: Workspace, run: Path, stage: str, name: str, options: dict[str, Value]
) -> pl.DataFrame:
    """Examples of one attack on one model."""
    trial = validate_trial(
        Trial(
            stage=stage,
            attack=Attack(name=name),
            options=tuple((f"{name}.{key}", value) for key, value in options.items()),
        )
    )
    assert run_attack_or_trial(trial, workspace, run, "test", "1") == "complete"
    return open_run(run).examples.collect()


def choices(examples: pl.DataFrame) -> pl.DataFrame:
    """Multiple choice on split forget."""
    return examples.filter(pl.col("split") == "forget", pl.col("metric") == "multiple_choice")


def most_by_chance(workspace: Workspace) -> float:
    """Chance of a guess among the options, and the upper end of its 95% interval for as many
    questions.
    """
    guesses = [1 / (1 + len(d.wrong)) for d in workspace.corpus.probes["forget"]]
    chance = sum(guesses) / len(guesses)
    return chance + 1.96 * math.sqrt(sum(p * (1 - p) for p in guesses)) / len(guesses)


@pytest.mark.parametrize(("name", "options"), TELL_NOTHING, ids=[name for name, _ in TELL_NOTHING])
def test_an_attack_that_brings_no_answer_makes_gold_answer_no_more_than_chance(
    workspace: Workspace, tmp_path: Path, name: str, options: dict[str, Value]
) -> None:
    """Else the synthetic dataset leaks: its questions, or the attack, would say what is asked."""
    found = choices(attacked(workspace, tmp_path / "run", "gold", name, options))
    assert found.height >= 16
    assert float(found["value"].mean()) <= most_by_chance(workspace)  # type: ignore[arg-type]


def test_the_same_attack_leaves_base_above_chance(workspace: Workspace, tmp_path: Path) -> None:
    """So the test above could fail."""
    found = choices(attacked(workspace, tmp_path / "run", "base", "round_to_nearest", {}))
    assert float(found["value"].mean()) > most_by_chance(workspace) + 0.3  # type: ignore[arg-type]


def test_the_share_of_weights_that_an_attack_touched_is_a_column_and_none_is_a_failure(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = validate_trial(Trial(stage="base", attack=Attack(name="round_to_nearest")))
    run_attack_or_trial(trial, workspace, tmp_path / "all", "test", "1")
    (row,) = open_run(tmp_path / "all").trials.collect().to_dicts()
    assert (row["status"], row["weights_touched"]) == ("complete", 1.0)
    monkeypatch.setattr(quantization, "model_matrices", lambda _model: [])
    assert run_attack_or_trial(trial, workspace, tmp_path / "none", "test", "1") == "failed"
    (row,) = open_run(tmp_path / "none").trials.collect().to_dicts()
    assert row["weights_touched"] == 0.0 and "round_to_nearest must reach 80%" in row["error"]


@pytest.mark.parametrize("setting", ["magnitude_pruning.share", "weight_noise.relative"])
def test_a_strength_of_0_has_touched_every_weight_and_gives_the_model_s_own_numbers(
    workspace: Workspace, tmp_path: Path, setting: str
) -> None:
    name, _, option = setting.partition(".")
    run = tmp_path / "run"
    found = attacked(workspace, run, "base", name, {option: 0.0})
    assert open_run(run).trials.collect()["weights_touched"].to_list() == [1.0]
    own = validate_trial(Trial(stage="base"))
    assert run_attack_or_trial(own, workspace, tmp_path / "own", "test", "1") == "complete"
    keys = ["doc_id", "split", "metric"]
    expected = open_run(tmp_path / "own").examples.collect().select(*keys, "value").sort(keys)
    assert found.select(*keys, "value").sort(keys).equals(expected)


def test_the_curve_has_a_point_per_step_and_as_few_as_asked_and_each_is_the_model_of_that_step(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Training of k steps at a constant strength is not the beginning of a longer one, so ends are
    compared: curve and examples agree there.
    """
    found = {}
    for points in (100, 2):
        options = (("heldout_relearning.steps", 5),)
        trial = validate_trial(
            Trial(
                stage="gold",
                attack=Attack(name="heldout_relearning", curve_points=points),
                options=options,
            )
        )
        assert (
            run_attack_or_trial(trial, workspace, tmp_path / str(points), "test", "1") == "complete"
        )
        run = open_run(tmp_path / str(points))
        curve = run.curves.collect().sort("x")
        assert set(curve["split"]) == {"forget"} and set(curve["metric"]) == {"probability"}
        found[points] = dict(curve.select("x", "value").iter_rows())
        asked = run.examples.filter(
            pl.col("split") == "forget", pl.col("metric") == "probability"
        ).collect()
        mean = sum(asked["value"]) / asked.height
        assert found[points][5.0] == pytest.approx(mean, rel=1e-5)
        assert set(curve["n"]) == {asked.height}
    assert list(found[100]) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] and list(found[2]) == [0.0, 3.0, 5.0]
    assert found[2] == pytest.approx({x: found[100][x] for x in found[2]})


def test_a_seed_says_everything(workspace: Workspace, tmp_path: Path) -> None:
    """Relearning draws documents and batches; twice the same, with its curve, whatever ran in
    between.
    """
    columns = ["split", "doc_id", "metric", "value"]
    first, _, second = (
        attacked(workspace, tmp_path / run, "gold", "relearning", {"steps": 4, "documents": n})
        .select(columns)
        .sort(columns)
        for run, n in (("one", 3), ("other", 5), ("two", 3))
    )
    assert first.equals(second)
    curves = [
        open_run(tmp_path / run).curves.select("x", "split", "metric", "value").collect()
        for run in ("one", "two")
    ]
    assert curves[0].equals(curves[1]) and curves[0]["x"].unique().sort().to_list() == [
        0.0,
        1.0,
        2.0,
        3.0,
        4.0,
    ]
