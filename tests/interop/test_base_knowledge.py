"""What base knows of each split: the table is that of its own examples."""

from pathlib import Path

import numpy as np
import pytest

from rayunlearn.analysis.intervals import mean_interval
from rayunlearn.config import Data, Model, Objective, Trial
from rayunlearn.interop.base_knowledge import OF_BASE, base_knowledge, metrics_of_base
from rayunlearn.interop.evaluate import measured_rows
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.trial.workspace import Workspace, workspace_of

SETS = "forget=capitals:Oceania,retain=capitals:America,near=capitals:Africa,untouched=,far="
ALL = "key_probability=0,paraphrase_probability=0,completion_probability=0,choice=false"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Trial, Workspace]:
    """An untrained model that is taken to know everything."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    tokenizer = build_tokenizer(["The capital of x is y."])
    model = save_model(build_model("tiny", len(tokenizer), seed=0), tokenizer, tmp_path / "model")
    trial = Trial(
        data=Data(name="known", options=f"{SETS},{ALL}"), model=Model(name=str(model), teach=False)
    )
    return trial, workspace_of(trial, tmp_path / "cache")


def test_every_split_and_metric_has_a_row_with_its_interval(
    pair: tuple[Trial, Workspace],
) -> None:
    trial, workspace = pair
    table = base_knowledge(trial, workspace, ("probability", *OF_BASE))
    splits = {"forget": 7, "paraphrased": 7, "retain": 27, "near": 34}
    n_by_place = {(row["split"], row["metric"]): row["n"] for row in table.to_dicts()}
    assert n_by_place == {
        (split, metric): n for split, n in splits.items() for metric in ("probability", *OF_BASE)
    }
    rows = measured_rows(workspace.base, trial, workspace)
    values = [r["value"] for r in rows if (r["split"], r["metric"]) == ("near", "probability")]
    expected = mean_interval(np.array([values]), bounds=(0.0, 1.0))
    (near,) = [r for r in table.to_dicts() if (r["split"], r["metric"]) == ("near", "probability")]
    assert near["mean"] == pytest.approx(np.mean(values))
    assert (near["low"], near["high"]) == pytest.approx((expected.low, expected.high))


def test_metrics_that_need_another_model_are_not_asked_of_base() -> None:
    objective = Objective(forgetting="base_kl", utility="probability")
    assert metrics_of_base(objective) == ("probability", *OF_BASE)
