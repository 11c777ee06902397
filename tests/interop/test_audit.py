"""A model made elsewhere is measured as it lies in its folder, attacked as a trial is, and refused
where reading it could do harm.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import torch

from rayunlearn.attacks.panels import chosen_panel
from rayunlearn.cli.arguments import MISTAKE
from rayunlearn.cli.main import main
from rayunlearn.config import Trial, with_values
from rayunlearn.errors import UserError
from rayunlearn.interop.audit import audit_of
from rayunlearn.metrics.table import CHANCE_LEVELS
from rayunlearn.planning.attack_planner import AttackFiles, attack_planner
from rayunlearn.planning.planner import Agenda, Planner
from rayunlearn.planning.run_tables import run_folder, write_settings
from rayunlearn.reporting.attack_tables import attack_tables
from rayunlearn.storage.run import open_run
from rayunlearn.trial import model_state
from rayunlearn.trial.attack import run_attack_or_trial
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.workspace import validate_trial, workspace_of

DATA = {"data.name": "domain"}


@pytest.fixture(scope="module")
def models(untaught_models: Path) -> Iterator[Path]:
    """Three untrained models with one vocabulary, in the folders base, gold and theirs."""
    yield untaught_models
    model_state.load_model_state.cache_clear()


@pytest.fixture
def hostile(models: Path, tmp_path: Path) -> Path:
    """A copy of `theirs`, to be spoilt."""
    return Path(shutil.copytree(models / "theirs", tmp_path / "hostile"))


def carry_out(agenda: Agenda, run: Path) -> None:
    for row in agenda.ready:
        assert (
            run_attack_or_trial(
                row.trial, workspace_of(row.trial, run.parents[1] / "cache"), run, "audit", "1"
            )
            == "complete"
        )


def test_a_model_made_elsewhere_is_measured_attacked_and_shown_under_its_folder_s_name(
    models: Path, tmp_path: Path
) -> None:
    """What is measured of it is what the same folder gives as a base model, which no code of the
    audit touches.
    """
    experiment = audit_of(
        str(models / "theirs"), str(models / "base"), str(models / "gold"), DATA, metric=""
    )
    run = run_folder(tmp_path, experiment)
    planner = Planner(experiment, validate_trial, identify_trial)
    agenda = planner.agenda({})
    assert sorted(row.role for row in agenda.rows) == ["base", "gold", "grid"]
    carry_out(agenda, run)
    write_settings(run, experiment, agenda, {})
    planner.write_plan(run, agenda)

    alone = validate_trial(
        with_values(
            Trial(stage="base"), {"model.teach": False, "model.name": str(models / "theirs")}
        )
    )
    assert (
        run_attack_or_trial(
            alone, workspace_of(alone, tmp_path / "cache"), tmp_path / "alone" / "1", "alone", "1"
        )
        == "complete"
    )
    columns = ["split", "doc_id", "metric", "value"]
    theirs = (
        open_run(run)
        .examples.filter(pl.col("stage") == "unlearned")
        .select(columns)
        .collect()
        .sort(columns)
    )
    assert theirs.equals(
        open_run(tmp_path / "alone" / "1")
        # asked of a base model, and not of an unlearned one
        .examples.filter(~pl.col("metric").is_in(list(CHANCE_LEVELS)))
        .select(columns)
        .collect()
        .sort(columns)
    )
    # nothing was trained
    assert not (tmp_path / "cache" / "unlearned").exists()

    attack = attack_planner(
        run,
        trials="grid",
        panel=chosen_panel("quick", names=["round_to_nearest"], n_seeds=1),
        reads=AttackFiles(),
        check=validate_trial,
        identify=identify_trial,
    )
    attacks = attack.agenda({})
    assert {row.trial.stage for row in attacks.ready} == {"unlearned", "base", "gold"}
    carry_out(attacks, run)
    attack.write_plan(run, attacks)
    matrix = attack_tables(open_run(run))[0]
    assert matrix.headers[1].startswith("theirs ")
    assert [row[0] for row in matrix.rows] == [
        "no attack",
        "round_to_nearest bits=8",
        "round_to_nearest bits=4",
        "worst case",
    ]


def test_the_same_audit_is_the_same_run_and_other_weights_another(
    models: Path, hostile: Path
) -> None:
    first, second = (
        audit_of(str(models / "theirs"), str(models / "base"), gold, DATA, metric="")
        for gold in ("", str(models / "gold"))
    )
    # a gold model more is a control more
    assert first.version == second.version
    other = audit_of(str(models / "gold"), str(models / "base"), "", DATA, metric="")
    assert other.version.partition("-")[2] != first.version.partition("-")[2]
    assert (
        audit_of(str(hostile), str(models / "base"), "", DATA, metric="").version.partition("-")[2]
        == first.version.partition("-")[2]
    )


def test_a_folder_whose_weights_are_pickled_is_refused(models: Path, hostile: Path) -> None:
    (hostile / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, hostile / "pytorch_model.bin")
    with pytest.raises(UserError, match="weights must be safetensors"):
        audit_of(str(hostile), str(models / "base"), "", DATA, metric="")


def test_a_folder_that_brings_code_is_refused_and_its_code_is_not_run(
    models: Path, hostile: Path, tmp_path: Path
) -> None:
    (hostile / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for file in ("config.json", "tokenizer_config.json"):
        content = json.loads((hostile / file).read_text()) | {
            "auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
        }
        (hostile / file).write_text(
            json.dumps(content | {"architectures": ["Evil"], "model_type": "evil"})
        )
    with pytest.raises(UserError, match="must be a causal language model that transformers knows"):
        audit_of(str(hostile), str(models / "base"), "", DATA, metric="")
    assert not (tmp_path / "ran").exists()


def test_models_that_cannot_be_asked_the_same_are_refused(models: Path, hostile: Path) -> None:
    config = json.loads((hostile / "config.json").read_text())
    (hostile / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(UserError, match="--base must have the blocks and width of --model"):
        audit_of(str(hostile), str(models / "base"), "", DATA, metric="")
    (hostile / "config.json").write_text(json.dumps(config))
    text = (hostile / "tokenizer.json").read_text()
    tokens = json.loads(text)["model"]["vocab"]
    first, second = sorted(tokens, key=lambda token: tokens[token])[-2:]
    swapped = json.loads(text)
    swapped["model"]["vocab"] |= {first: tokens[second], second: tokens[first]}
    (hostile / "tokenizer.json").write_text(json.dumps(swapped))
    with pytest.raises(UserError, match="--base must have the token ids of --model; 2 are others"):
        audit_of(str(hostile), str(models / "base"), "", DATA, metric="")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "attack takes either a run folder or --model"),
        (["runs/x/1", "--model", "m"], "attack takes either a run folder or --model"),
        (["runs/x/1", "--base", "b"], "these go with --model and not with a run"),
        (["--model", "m", "--benchmark", "domain"], "an audit must have --base"),
        (
            ["--model", "./nowhere", "--base", "./nowhere", "--benchmark", "domain"],
            "must be a directory that exists",
        ),
    ],
)
def test_an_audit_that_is_asked_for_wrongly_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["attack", *arguments]) == MISTAKE
    assert message in capsys.readouterr().err
