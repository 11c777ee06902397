"""The command line: words, exit statuses, and how little it imports."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rayunlearn.cli.arguments import DONE, INCOMPLETE, INTERRUPTED, MISTAKE, output_folder
from rayunlearn.cli.main import FIRST_PART, main, parser
from rayunlearn.cli.output import exit_code, print_conclusion
from rayunlearn.cluster.sweep import SweepResult
from rayunlearn.config import Method, Objective, Train, Trial
from rayunlearn.errors import UserError
from rayunlearn.experiment import Budget, Experiment, grids_of
from rayunlearn.planning.cost import (
    COPIES,
    FIXED_BYTES,
    FIXED_SECONDS,
    FLOP_PER_SECOND,
    WorkloadSize,
    estimate,
    parameters_of,
    tokens_of_trial,
)
from rayunlearn.planning.planner import Planner
from tests import fake_work, synthetic

EXPERIMENT = '''"""Does a small coreset do?"""
from rayunlearn.config import Method, Train, Trial
from rayunlearn.experiment import Budget, Range

BASE = Trial(method=Method(layer=1), train=Train(length=10))
AXES = {"method.forget": ("npo", "rmu"), "select.ratio": (0.25, 1.0)}
SEARCH = {"train.learning_rate": Range(1e-5, 1e-2, log=True)}
BUDGET = Budget(trials=4, batch=2)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with an `experiments` folder, as the current one."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "nothing.py"],
            "an experiment must be a Python file that exists, got 'nothing.py'",
        ),
        (
            ["run", "experiments/mine.py", "--set", "select.ratio=1.4"],
            "select.ratio must be in (0, 1], got 1.4",
        ),
        (
            ["run", "experiments/mine.py", "--set", "select.ration=1"],
            "did you mean 'select.ratio'?",
        ),
        (["run", "experiments/mine.py", "--set", "npo.bta=1"], "did you mean 'npo.beta'?"),
        (["plan", "experiments/mine.py", "--set", "npo.bta=[1,2]"], "did you mean 'npo.beta'?"),
        (
            ["plan", "experiments/mine.py", "--set", "select.ratio=0.25,1.0"],
            "several values are an axis: --set select.ratio=[0.25,1.0]",
        ),
        (
            ["plan", "experiments/mine.py", "--set", "train.length=9", "train.length=8"],
            "--set gives train.length twice",
        ),
        (["plan", "experiments/mine.py", "--set", "select.ratio=[0.25"], "takes a JSON list"),
        (["run", "experiments/mine.py", "--set", "method.forget=rmuu"], "did you mean 'rmu'?"),
        (
            ["run", "experiments/mine.py", "--set", "attacks.panel=quik"],
            "unknown panel 'quik'; did you mean 'quick'?",
        ),
        (["run", "experiments/mine.py", "--set", "attacks.trials=bst"], "did you mean 'best'?"),
        (["run", "experiments/mine.py", "--set", "ratio"], "--set takes name=value, got 'ratio'"),
        (["run", "experiments/mine.py", "--workers", "-1"], "--workers must be >= 0, got -1"),
        (
            ["plan", "experiments/mine.py", "--set", "method.layer=99", "method.forget=rmu"],
            "method.layer must be <",
        ),
        (["list", "metrcs"], "unknown list 'metrcs'; did you mean 'metrics'?"),
        (["show", "nowhere", "abc"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["attack", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_exit_2_and_nothing_is_started(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == MISTAKE
    said = capsys.readouterr()
    assert message in said.err and said.err.startswith("rayunlearn: ") and said.err.count("\n") == 1
    assert not (here / "runs").exists() and said.out == ""


def test_plan_says_how_many_trials_in_which_cells_and_what_they_take(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand: base, gold; per method 4 tuning trials, 2 cells and 1 control, where the full-set
    cell is the tuning's winner: 2 + 2 x 6.
    """
    assert main(["plan", "experiments/mine.py", "--workers", "2"]) == DONE
    said = capsys.readouterr().out
    assert "14 trials: 0 finished, 14 to run" in said
    assert "models to train first: base of domain, gold of domain" in said
    assert "with 2 workers about" in said and "GiB" in said and "rule of thumb" in said
    assert not (here / "runs").exists()


TWO_CHOICES = EXPERIMENT.replace("import Budget, Range", "import Budget, Choice").replace(
    '"train.learning_rate": Range(1e-5, 1e-2, log=True)', '"train.batch_size": Choice(4, 8)'
)


def test_plan_says_that_a_choice_of_two_is_two_tuning_trials(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As above, but per method 2 tuning trials of the 6 asked for, and one control for both
    methods, whose batch size is taken to be the same: 2 + 2 x (2 + 1) + 1.
    """
    (here / "experiments" / "mine.py").write_text(TWO_CHOICES.replace("trials=4", "trials=6"))
    assert main(["plan", "experiments/mine.py"]) == DONE
    said = capsys.readouterr().out
    assert "9 trials: 0 finished, 9 to run" in said
    assert (
        "note: method.forget=npo: SEARCH has 2 different settings, so its tuning takes 2 trials,"
        " not 6 (budget.trials)" in said
    )
    tuning = [line.split() for line in said.splitlines() if line.startswith("tuning")]
    assert tuning and {row[-2] for row in tuning} == {"2"}


def test_plan_says_what_of_the_data_is_left_out(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column that is not read, a null wrong answer and a row without an answer."""
    row = {"question": "Who?", "answer": "Ada.", "wrong": ["Bob.", None], "id": 1}
    rows = [row, {"question": "Where?"}]
    for name in ("forget", "retain"):
        content = "".join(json.dumps(r | {"question": f"{name}?"}) + "\n" for r in rows)
        (here / f"{name}.jsonl").write_text(content)
    words = ["data.name=files", f"data.path={here}"]
    assert main(["plan", "experiments/mine.py", "--set", *words]) == DONE
    said = capsys.readouterr().out
    assert "note: forget.jsonl: columns that are not read: id" in said
    assert "note: forget.jsonl: missing or empty items of wrong are left out (1)" in said
    assert "note: documents rejected: 2 (2 x answer is missing)" in said


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize(
    "command",
    [
        ["run", "experiments/mine.py"],
        ["plan", "experiments/mine.py"],
        ["prepare", "experiments/mine.py"],
        ["attack", "--model", ".", "--base", ".", "--benchmark", "people"],
        ["evaluate", ".", "--benchmark", "people"],
        ["books", ".", "--forget", "A", "--retain", "B"],
    ],
)
def test_an_output_that_is_a_file_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], command: list[str], place: str
) -> None:
    (here / "file").write_text("mine")
    assert main([*command, "--output", place]) == MISTAKE
    said = capsys.readouterr().err
    rule = "--output must be a folder or one to be made; it is a file, got"
    assert said == f"rayunlearn: {rule} {place!r}\n"
    assert (here / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "command", [["keywords", "--extractor", "tfidf"], ["score", "--base", "."]]
)
def test_an_output_of_corpus_work_that_is_another_file_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """`file` would be a folder of tables, `file/x.parquet` lies below a file."""
    (here / "file").write_text("mine")
    rules = {
        "file": "--output must be a folder that is not there yet, got 'file'",
        "file/x.parquet": "--output must be a folder or one to be made; it is a file, got 'file'",
    }
    for place, rule in rules.items():
        assert main([command[0], "people", *command[1:], "--output", place]) == MISTAKE
        assert capsys.readouterr().err == f"rayunlearn: {rule}\n"
    assert (here / "file").read_text() == "mine"


@pytest.mark.parametrize("command", ["report", "studies", "export"])
def test_an_output_of_a_run_s_command_that_is_below_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    run, file = synthetic.write_run(tmp_path / "run"), tmp_path / "file"
    file.write_text("mine")
    trial = ["abc"] if command == "export" else []
    assert main([command, str(run), *trial, "--output", str(file / "below" / "x.html")]) == MISTAKE
    said = capsys.readouterr().err
    assert said.startswith("rayunlearn: ") and said.count("\n") == 1 and "a file" in said
    assert file.read_text() == "mine"


def test_studies_are_not_written_over_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = synthetic.write_run(tmp_path / "run")
    assert main(["studies", str(run), "--output", str(tmp_path)]) == MISTAKE
    assert "--output must be a file, or one to be made; it is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["RAY_JOB_ID", "RAY_JOB_CONFIG_JSON_ENV_VAR"])
@pytest.mark.parametrize("place", [[], ["--output", "mine"]])
def test_a_ray_job_does_not_write_into_its_own_working_folder(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    place: list[str],
) -> None:
    """Only together: the variable elsewhere, and the folder without it, are no such job."""
    unpacked = here / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    shutil.copytree(here / "experiments", unpacked / "experiments")
    monkeypatch.chdir(unpacked)
    assert output_folder("runs") == Path("runs")
    monkeypatch.setenv(variable, "1")
    assert main(["run", "experiments/mine.py", *place]) == MISTAKE
    said = capsys.readouterr().err
    assert "--output must be an absolute path that outlives this Ray job" in said
    assert f"s3://bucket/runs), got {(place or ['runs'])[-1]!r}" in said
    assert output_folder(here / "runs") == here / "runs"
    monkeypatch.chdir(here)
    assert output_folder("runs") == Path("runs")


@pytest.mark.parametrize("name", ["...py", "cache.py", ".. .py", "a\\b.py", "a\nb.py"])
def test_an_experiment_s_name_stays_in_the_output_folder(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (here / name).write_text(EXPERIMENT)
    assert main(["plan", name]) == MISTAKE
    assert "must name a folder of its own in the output folder" in capsys.readouterr().err


def test_a_terminal_of_ascii_shows_every_text_without_a_traceback(here: Path) -> None:
    """A name with a letter that ASCII lacks, in each command that prints it or a table."""
    run = synthetic.write_run(here / "Größe")
    (here / "experiments" / "größe.py").write_text(EXPERIMENT)
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    for words in (
        ["list", "methods"],
        ["plan", "experiments/größe.py"],
        ["report", str(run)],
        ["frontier", str(run)],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "rayunlearn", *words],
            env=environment,
            capture_output=True,
            check=False,
        )
        # what a command does is said where it takes more than a second
        said = ended.stderr.decode("ascii").splitlines()
        assert ended.returncode == 0 and all(line.endswith(" ...") for line in said), said
        assert ended.stdout.decode("ascii")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--panel", "quik"], "unknown panel 'quik'; did you mean 'quick'?"),
        (["--attacks", "relearnin"], "unknown attack 'relearnin'; did you mean 'relearning'?"),
        (["--seeds", "0"], "--seeds must be >= 1, got 0"),
        (["--trials", "zzz"], "no trial 'zzz'"),
    ],
)
def test_an_attack_that_is_asked_for_wrongly_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    run = synthetic.write_run(tmp_path / "run")
    assert main(["attack", str(run), *arguments]) == MISTAKE
    assert message in capsys.readouterr().err
    assert not (run / "attacks.parquet").exists()


def test_plan_says_that_attacks_follow(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", "experiments/mine.py", "--set", "attacks.panel=quick", "attacks.trials=best"])
        == DONE
    )
    assert "then the attacks of panel quick on best" in capsys.readouterr().out


def test_lists_show_hyperparameters_defaults_and_sources(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "methods": "npo.beta = 0.1 (must be > 0)",
        "selectors": "min_k.fraction = 0.4",
        "metrics": "multiple_choice",
        "experiments": "Does a small coreset do?",
    }
    for what, word in words.items():
        assert main(["list", what]) == DONE
        assert word in capsys.readouterr().out


def test_help_and_the_module_form_need_nothing_heavy() -> None:
    shown = "import sys, rayunlearn.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    heavy = "print([m for m in ('torch', 'ray', 'polars', 'optuna') if m in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", shown + heavy], capture_output=True, text=True, check=True
    ).stdout
    assert said.rstrip().endswith("[]")
    module = subprocess.run(
        [sys.executable, "-m", "rayunlearn", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "usage: rayunlearn" in module and "prepare" in module


def sweep_result(*, complete: int, failed: int = 0, interrupted: bool = False) -> SweepResult:
    statuses = {"complete": complete} | ({"failed": failed} if failed else {})
    return SweepResult(
        run=Path("runs/mine/1"),
        total=10,
        statuses=statuses,
        ran=3,
        interrupted=interrupted,
        seconds=12.0,
    )


def test_the_ending_says_what_is_done_what_is_not_and_how_to_go_on() -> None:
    lines = exit_code(
        sweep_result(complete=6, failed=1, interrupted=True),
        ["rayunlearn", "run", "my experiment.py"],
    )
    assert lines == [
        "stopped before the end; every trial that had finished is kept",
        "6 of 10 trials are done (3 in this call, 12 s): 6 complete, 1 failed",
        "4 of 10 trials are not done; resume with: rayunlearn run 'my experiment.py'",
    ]


def test_the_exit_status_tells_done_from_incomplete_from_interrupted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rich.console import Console

    results = [
        sweep_result(complete=10),
        sweep_result(complete=9, failed=1),
        sweep_result(complete=4, interrupted=True),
    ]
    assert [print_conclusion(result, ["again"], Console()) for result in results] == [
        DONE,
        INCOMPLETE,
        INTERRUPTED,
    ]


def test_the_rule_of_thumb_is_six_times_parameters_times_tokens(tmp_path: Path) -> None:
    """By hand: 10 steps x 8 documents x 2 sides x 50 tokens = 8,000 tokens; the control has one
    side, 4,000; a million parameters.
    """
    base = Trial(train=Train(length=10, batch_size=8))
    chosen = Experiment(
        name="e",
        question="",
        base=base,
        grids=grids_of({}),
        search={},
        budget=Budget(tuning="none"),
        objective=Objective(),
    )
    size = WorkloadSize(parameters=1e6, tokens_per_document=50, n_forget=100)
    guess = estimate(
        tmp_path,
        Planner(chosen, fake_work.check, fake_work.identify).agenda({}),
        size_of=lambda _: size,
    )
    assert guess.seconds == pytest.approx(
        FIXED_SECONDS + 6 * 1e6 * (8000 + 4000) / 2 / FLOP_PER_SECOND
    )
    # the two moments of AdamW beside what every optimizer takes
    assert guess.bytes == FIXED_BYTES + (COPIES + 2) * 4e6


def test_tokens_count_the_unit_that_training_length_is_given_in() -> None:
    """A quarter of 100 documents for 2 epochs is 50 documents; both sides, 10 tokens each:
    1,000.
    """
    size = WorkloadSize(parameters=1, tokens_per_document=10, n_forget=100)
    trial = Trial(method=Method(), train=Train(length=2, unit="epochs"))
    quarter = Trial(select=type(trial.select)(ratio=0.25), train=trial.train)
    assert tokens_of_trial(quarter, size) == 1000
    assert tokens_of_trial(Trial(train=Train(length=30, unit="presentations")), size) == 600


def test_parameters_are_read_from_a_folder_s_headers_and_match_a_built_model(
    tmp_path: Path,
) -> None:
    import torch
    from safetensors.torch import save_file

    from rayunlearn.models.scratch import build_model

    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, str(tmp_path / "model.safetensors"))
    assert parameters_of(type(Trial().model)(name=str(tmp_path), teach=False)) == 17
    built = sum(p.numel() for p in build_model("tiny", 2000, 0).parameters())
    assert parameters_of(Trial().model) == pytest.approx(built, rel=0.01)
    with pytest.raises(UserError, match="model folder on this machine"):
        parameters_of(type(Trial().model)(name="some/hub-model", teach=False))


def test_frontier_says_for_every_method_and_selector_whether_equivalence_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = synthetic.write_run(tmp_path / "run")
    assert main(["frontier", str(run), "--margin", "0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("within 0.05" in line or "not shown" in line for line in lines)
    assert main(["frontier", str(run), "--margin", "-1"]) == 2
    assert "margin" in capsys.readouterr().err


def test_every_command_says_what_it_does_first() -> None:
    """The line that comes within two seconds (tests/trial/test_narration.py)."""
    commands = parser()._subparsers
    assert commands is not None
    (choices,) = (action.choices for action in commands._group_actions if action.choices)
    assert set(FIRST_PART) == set(choices)


def test_an_axis_of_the_command_line_takes_the_place_of_the_file_s(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 0.25 and 1 on the file's axis 0.5 is left out and in."""
    axes = ["--set", "select.ratio=[0.5,1]", 'method.forget=["npo"]']
    assert main(["plan", "experiments/mine.py", *axes]) == DONE
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    grid = [row for row in rows if row[:1] == ["grid"]]
    assert [row[5] for row in grid] == ["0.5", "1"] and all(row[1] == "npo" for row in grid)


def test_a_misspelt_keyword_of_an_experiment_file_is_answered_with_the_nearest(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = here / "experiments" / "mine.py"
    file.write_text(EXPERIMENT.replace("length=10", "lenght=10"))
    assert main(["plan", "experiments/mine.py"]) == MISTAKE
    assert "'lenght'; did you mean 'length'? (line 5)" in capsys.readouterr().err


def test_frontier_says_why_it_has_nothing_to_say_and_refuses_a_margin_of_everything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = Path(__file__).parents[2] / "docs" / "notebooks" / "runs"
    assert main(["frontier", str(runs / "control")]) == DONE
    assert capsys.readouterr().out.startswith("nothing to compare: ")
    assert main(["frontier", str(runs / "coreset"), "--margin", "1"]) == MISTAKE
    assert "--margin must be < 1" in capsys.readouterr().err


def test_the_folder_above_a_run_is_answered_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.write_run(tmp_path / "hello" / "1")
    assert main(["show", str(tmp_path / "hello")]) == MISTAKE
    assert f"did you mean {tmp_path / 'hello' / '1'}?" in capsys.readouterr().err
