"""Tasks of lm-evaluation-harness on a trial's model: with the harness where it is installed, and
what holds without it.
"""

import json
import math
from pathlib import Path

import pytest

from rayunlearn.analysis.harness import harness_table
from rayunlearn.config import Objective, Trial, Value, with_values
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Experiment, check_measured
from rayunlearn.metrics.harness import harness_rows, sample_rows
from rayunlearn.planning.harness_planner import HarnessPlanner
from rayunlearn.planning.outcomes import trial_results
from rayunlearn.registry import check_trial
from rayunlearn.storage.run import open_run
from rayunlearn.trial.attack import run_attack_or_trial
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.workspace import Workspace, identity_in, validate_trial

QUICK: dict[str, Value] = {"train.length": 1, "train.batch_size": 2, "method.layer": 1}

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
num_fewshot: 0
metric_list:
  - metric: acc
"""


def trial_of(**values: Value) -> Trial:
    """A trial held against the tables; of a task nothing is asked of the harness yet."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    return check_trial(with_values(Trial(), QUICK | named))


@pytest.fixture
def tasks(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the task `made_here`: four questions with the same options, the truth being
    each of them once, so that a model that prefers one option is right once.
    """
    pytest.importorskip(
        "lm_eval", reason="lm-evaluation-harness (the extra `harness`) is not installed"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    options = [probe.answer for probe in workspace.corpus.probes["retain"]]
    options = list(dict.fromkeys(options))[:4]
    question = workspace.corpus.probes["retain"][0].prompt
    rows = [{"question": question, "choices": options, "answer": at} for at in range(4)]
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    text = TASK.format(name="made_here", file=tmp_path / "questions.jsonl")
    (tmp_path / "made_here.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_task_is_a_trial_whose_rows_say_what_was_asked_and_of_whom(
    tasks: Path, workspace: Workspace, tmp_path: Path
) -> None:
    own = trial_of()
    asked = validate_trial(
        with_values(own, {"harness.task": "made_here", "harness.include": str(tasks)})
    )
    run = tmp_path / "run"
    assert run_attack_or_trial(asked, workspace, run, "here", "1") == "complete"
    row = harness_table(open_run(run)).row(0, named=True)
    assert (row["task"], row["metric"], row["n"], row["n_shot"]) == (
        "made_here",
        "harness.acc",
        4,
        0,
    )
    assert row["value"] == 0.25 and row["evaluated"] == identity_in(own, workspace)
    # of a mean of four zeros and ones
    assert row["stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    assert row["harness_version"]
    examples = open_run(run).examples.filter(split="made_here").collect()
    assert examples["value"].sort().to_list() == [0.0, 0.0, 0.0, 1.0]


def test_a_trial_asks_its_own_tasks_and_the_objective_reads_them(
    tasks: Path, workspace: Workspace, tmp_path: Path
) -> None:
    trial = validate_trial(
        with_values(
            trial_of(), {"measure.harness": "made_here", "measure.harness_include": str(tasks)}
        )
    )
    run = tmp_path / "run"
    assert run_attack_or_trial(trial, workspace, run, "here", "1") == "complete"
    goal = Objective(utility="harness.acc", utility_split="made_here", target="none")
    result = trial_results(run, goal)[identity_in(trial, workspace)]
    assert result.utility == 0.25 and math.isfinite(result.forgetting)


def test_an_unknown_task_is_refused_before_anything_runs(tasks: Path) -> None:
    values: dict[str, Value] = {"harness.task": "made_heer", "harness.include": str(tasks)}
    with pytest.raises(UserError, match="did you mean 'made_here'"):
        validate_trial(with_values(trial_of(), values))


def test_a_task_that_fails_is_a_row_with_its_error(workspace: Workspace, tmp_path: Path) -> None:
    """Without the harness it is not installed; with it there is no such task."""
    run, trial = tmp_path / "run", trial_of(harness__task="no_such_task")
    assert run_attack_or_trial(trial, workspace, run, "here", "1") == "failed"
    row = harness_table(open_run(run)).row(0, named=True)
    assert (row["task"], row["status"], row["metric"]) == ("no_such_task", "failed", None)
    assert "harness" in row["error"]


def test_every_model_is_asked_every_task_and_what_has_ended_is_not_asked_again() -> None:
    models = (trial_of(), trial_of(train__seed=1))
    tasks = tuple(
        with_values(Trial(), {"harness.task": name}).harness for name in ("first", "second")
    )
    experiment = Experiment(
        name="asked",
        question="?",
        base=trial_of(),
        grids=((),),
        search={},
        budget=Budget(tuning="none"),
        objective=Objective(),
    )
    planner = HarnessPlanner(experiment, check_trial, identify_trial, models, tasks)
    agenda = planner.agenda({})
    assert len({row.trial_id for row in agenda.rows}) == 4 == len(agenda.ready)
    assert [row.trial.harness.task for row in agenda.rows] == ["first"] * 2 + ["second"] * 2
    ended = dict.fromkeys([agenda.rows[0].trial_id])
    assert planner.agenda(ended).ready == agenda.rows[1:]  # type: ignore[arg-type]


def test_a_trial_without_a_task_has_the_id_it_had() -> None:
    limited = with_values(Trial(), {"harness.limit": 3})
    assert identify_trial(check_trial(limited)) == identify_trial(check_trial(Trial()))
    assert identify_trial(trial_of()) != identify_trial(trial_of(harness__task="mmlu"))


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"harness.limit": -1}, "harness.limit must be >= 0"),
        ({"harness.shots": "two"}, "harness.shots must be a whole number"),
        ({"measure.harness_limit": -1}, "measure.harness_limit must be >= 0"),
    ],
)
def test_a_setting_out_of_range_is_told(values: dict[str, Value], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        with_values(Trial(), values)


def test_a_utility_on_a_task_that_no_trial_is_asked_is_refused() -> None:
    def experiment_with(**values: Value) -> Experiment:
        return Experiment(
            name="asked",
            question="?",
            base=trial_of(**values),
            grids=((),),
            search={},
            budget=Budget(tuning="none"),
            objective=Objective(utility="harness.acc", utility_split="arc_easy"),
        )

    check_measured(experiment_with(measure__harness="mmlu,arc_easy"))
    with pytest.raises(UserError, match=r"must be a task of measure\.harness .*got 'arc_easy'"):
        check_measured(experiment_with(measure__harness="mmlu"))
    with pytest.raises(UserError, match=r"budget\.rungs or stop\.keep=best"):
        check_measured(experiment_with(measure__harness="arc_easy", stop__keep="best"))


def test_questions_become_rows_where_the_metric_is_their_mean() -> None:
    """acc is (1 + 0) / 2; the harness's f1 of the task is no mean of what it has per question."""
    output = {
        "results": {"t": {"acc,none": 0.5, "f1,none": 0.9}},
        "n-samples": {"t": {"effective": 2}},
        "n-shot": {"t": 3},
        "samples": {
            "t": [
                {"doc_hash": "a" * 64, "metrics": ["acc", "f1"], "acc": 1.0, "f1": 0.0},
                {"doc_hash": "b" * 64, "metrics": ["acc", "f1"], "acc": 0.0, "f1": 1.0},
            ]
        },
    }
    evals = harness_rows(output, "0.4.13")
    assert [(r["metric"], r["n_shot"], r["harness_version"]) for r in evals] == [
        ("harness.acc", 3, "0.4.13"),
        ("harness.f1", 3, "0.4.13"),
    ]
    assert sample_rows(output, evals) == [
        {"doc_id": "a" * 16, "split": "t", "metric": "harness.acc", "value": 1.0},
        {"doc_id": "b" * 16, "split": "t", "metric": "harness.acc", "value": 0.0},
    ]
