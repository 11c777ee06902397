"""`rayunlearn init`: what it writes is planned as it stands."""

from pathlib import Path

import pytest

from rayunlearn.cli.main import main
from rayunlearn.experiment import load
from rayunlearn.planning.backend import unlearning_backend
from rayunlearn.planning.planner import Planner
from rayunlearn.trial.identity import corpus_of


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_written_is_planned_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """Two ratios by three seeds, with a control, base and gold, on the sample documents."""
    assert main(["init", "mine"]) == 0
    said = capsys.readouterr().out
    assert "corpus/mine/forget.jsonl" in said and "rayunlearn run experiments/mine.py" in said
    experiment, work = load("experiments/mine.py"), unlearning_backend()
    agenda = Planner(experiment, work.check, work.identify, work.notes_of).agenda({})
    roles = [row.role for row in agenda.rows]
    assert roles.count("grid") == 6 and {"base", "gold", "control"} <= set(roles)
    trial = agenda.rows[0].trial
    corpus = corpus_of(trial.data, trial.model)
    assert len(corpus.forget) == len(corpus.retain) == 12 and not corpus.rejections


def test_data_and_model_of_your_own_are_written_as_given() -> None:
    Path("facts").mkdir()
    assert main(["init", "mine", "--data", "facts", "--model", "there/model"]) == 0
    base = load("experiments/mine.py").base
    assert base.data.path == "facts" and base.model.name == "there/model"
    assert base.train.learning_rate == 1e-5 and not Path("corpus").exists()


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "mine"]) == 0
    assert main(["init", "mine"]) == 2
    assert "there is one, got 'experiments/mine.py'" in capsys.readouterr().err
    Path("experiments/mine.py").unlink()
    assert main(["init", "mine"]) == 2
    assert "corpus/mine/forget.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../mine", "", "a b", "mine.py"])
def test_a_name_that_is_no_file_of_the_folder_is_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", name]) == 2
    assert "init needs a name of letters" in capsys.readouterr().err
