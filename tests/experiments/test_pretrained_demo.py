"""The demonstration on a real model: its facts, and that it plans without the model being here."""

from pathlib import Path

import pytest

from rayunlearn.data.benchmarks import load_benchmark, parse_options
from rayunlearn.experiment import load
from rayunlearn.planning.planner import grid_groups
from rayunlearn.registry import check_trial

FILE = Path(__file__).parents[2] / "experiments" / "pretrained_demo.py"


def test_it_compares_a_quarter_with_the_full_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    experiment = load(str(FILE))
    (group,) = grid_groups(experiment, check=check_trial)
    assert experiment.base.model.name == str(tmp_path / "rayunlearn" / "SmolLM2-135M-Instruct")
    assert not experiment.base.model.teach and experiment.base.data.template == "chat"
    assert sorted(cell.select.ratio for cell in group.cells) == [0.25, 1.0]


def test_its_sets_are_capitals_and_other_relations() -> None:
    data = load(str(FILE)).base.data
    corpus = load_benchmark("known", data.path, options=parse_options("known", data.options))
    assert {document.topic for document in corpus.forget} == {"capitals:Europe"}
    assert set(corpus.probes) == {"forget", "retain", "untouched", "near", "far"}
