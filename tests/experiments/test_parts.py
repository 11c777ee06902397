"""The table of `make findings`, its plan, and that it goes on where it ended."""

import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from experiments.findings import make
from experiments.findings.make import plan_of, plan_table, run_parts
from experiments.findings.page import FINDINGS
from experiments.findings.parts import PARTS, Part, parts_of
from rayunlearn.cli.attack import panel_of_options
from rayunlearn.cli.main import parser
from rayunlearn.config import flatten
from rayunlearn.errors import UserError
from rayunlearn.experiment import load
from rayunlearn.planning.backend import unlearning_backend
from rayunlearn.planning.planner import Planner
from rayunlearn.storage.run import write_trial

ROOT = Path(__file__).parents[2]
OUTPUT = Path("runs")


def test_every_page_is_made_of_the_run_of_a_part() -> None:
    made_of = {finding.folder(OUTPUT, "") for finding in FINDINGS}
    assert made_of <= {part.folder(OUTPUT) for part in PARTS}
    assert {part.experiment for part in PARTS} == {finding.experiment for finding in FINDINGS}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.experiment}-{part.preset}")
def test_a_part_names_an_experiment_its_preset_and_attacks_that_there_are(part: Part) -> None:
    experiment = load(ROOT / "experiments" / f"{part.experiment}.py", preset=part.preset)
    assert part.folder(OUTPUT) == OUTPUT / experiment.name / experiment.version
    run, *attacks = [parser().parse_args(command) for command in part.commands(OUTPUT)]
    assert run.preset == part.preset and len(attacks) == bool(part.attacks)
    assert not (attacks and experiment.attacks.panel), "named twice"
    for attack in attacks:
        assert attack.run == str(part.folder(OUTPUT)) and panel_of_options(attack).entries


def test_only_takes_names_of_experiments_with_all_their_presets() -> None:
    assert parts_of("") == list(PARTS)
    assert [part.version for part in parts_of("pretrained_coreset")] == ["1", "1-languages"]
    # in the table's order
    assert [part.experiment for part in parts_of("control, keywords")] == ["keywords", "control"]
    with pytest.raises(UserError, match="'contrl'; did you mean 'control'"):
        parts_of("contrl")


def test_the_makefile_hands_on_the_names() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    [command] = re.findall(r"-m experiments\.findings\.make (.*)", text)
    assert shlex.split(command) == shlex.split("$(if $(ONLY),--only $(ONLY)) $(if $(PLAN),--plan)")


def test_a_command_that_fails_ends_it_and_the_next_call_begins_with_the_same() -> None:
    """Three commands of two parts; the attacks of the first fail once."""
    parts, failing = parts_of("defences,control"), [0, 3]
    ran: list[str] = []

    def run(words: list[str]) -> int:
        ran.append(" ".join(words[:2]))
        return failing.pop(0) if failing else 0

    expected = ["run experiments/control.py", "run experiments/defences.py"]
    expected.append("attack runs/defences/1")
    assert run_parts(parts, OUTPUT, run) == 3
    assert ran == expected[:2]
    assert run_parts(parts, OUTPUT, run) == 0
    assert ran[2:] == expected


def test_the_plan_counts_what_has_ended_and_the_time_of_the_rest(tmp_path: Path) -> None:
    part = Part(experiment="retain_coreset")
    before = plan_of(part, tmp_path, 2)
    assert before.finished == 0 < before.trials and before.seconds > 0 and not before.problem
    experiment = load(ROOT / "experiments" / "retain_coreset.py")
    work = unlearning_backend()
    row = Planner(experiment, work.check, work.identify).agenda({}).rows[0]
    write_trial(
        part.folder(tmp_path),
        row.trial_id,
        {"trials": [{"status": "complete"}]},
        flatten(row.trial),
    )
    # one trial less, at twice the workers
    after, left = plan_of(part, tmp_path, 4), before.trials - 1
    assert (after.trials, after.finished) == (before.trials, 1)
    assert after.seconds == pytest.approx(before.seconds / before.trials * left / 2)


def test_a_part_whose_model_is_not_there_says_so_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = plan_of(Part(experiment="pretrained_control", preset="quick"), tmp_path, 2)
    assert "SmolLM2" in plan.problem and plan.trials == 0
    console = Console(record=True, width=200)
    console.print(
        plan_table([plan, make.PartPlan(part=PARTS[0], trials=9, finished=4, seconds=60)])
    )
    _, stopped, other = console.export_text().splitlines()
    assert stopped.split() == ["pretrained_control", "quick", "cannot", "run", "here"]
    assert other.split() == ["coreset_effect", "laptop", "9", "4", "about", "60", "s"]
