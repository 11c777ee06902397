"""From a run to a Hugging Face directory and back: the exported model has the rows that its trial
recorded.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayunlearn.cli.main import main
from rayunlearn.config import Trial, Value, with_values
from rayunlearn.errors import UserError
from rayunlearn.interop.export import export_trial, markdown_table
from rayunlearn.models.folder import inspect_model_folder
from rayunlearn.models.load import load_model, save_model
from rayunlearn.storage.run import open_run
from rayunlearn.trial import model_state
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import validate_trial, workspace_of
from tests.conftest import Bed

QUICK: dict[str, Value] = {
    "model.teach": False,
    "train.length": 4,
    "train.batch_size": 2,
    "train.learning_rate": 1e-3,
    "select.ratio": 0.1,
}
PLACE = ["split", "metric", "doc_id"]


@pytest.fixture(scope="module")
def ended(
    domain_bed: Bed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, str]]]:
    """(run, ids) of three trials on the trained tiny dataset:
    base, NPO on all weights, NPO with LoRA.
    """
    runs = tmp_path_factory.mktemp("export") / "runs"
    values = {
        "base": {"stage": "base"},
        "full": {},
        "lora": {"train.adapter": "lora", "lora.rank": 4, "train.parameters": "q_proj"},
    }
    start = with_values(
        Trial(), QUICK | {"model.name": str(domain_bed.base), "model.gold": str(domain_bed.gold)}
    )
    trials = {name: validate_trial(with_values(start, changed)) for name, changed in values.items()}
    for trial in trials.values():
        assert (
            run_trial(
                trial,
                workspace_of(trial, runs / "cache"),
                runs / "quick" / "1",
                "quick",
                "1",
                commit="abc123",
            )
            == "complete"
        )
    yield runs / "quick" / "1", {name: identify_trial(trial) for name, trial in trials.items()}
    model_state.load_model_state.cache_clear()


def rows_of(frame: pl.DataFrame) -> list[tuple[object, ...]]:
    return frame.select(*PLACE, "value").sort(PLACE).rows()


@pytest.mark.parametrize("name", ["full", "lora"])
def test_an_exported_model_is_evaluated_to_the_rows_its_trial_recorded(
    ended: tuple[Path, dict[str, str]], name: str, tmp_path: Path
) -> None:
    run, ids = ended
    assert main(["export", str(run), ids[name][:6], "--output", str(tmp_path / "model")]) == 0
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "model"),
                "--benchmark",
                "domain",
                "--output",
                str(tmp_path / "rows"),
            ]
        )
        == 0
    )
    recorded = open_run(run).examples.filter(pl.col("trial_id") == ids[name]).collect()
    before = open_run(run).examples.filter(pl.col("trial_id") == ids["base"]).collect()
    # levels of chance are measured on base alone
    found = pl.read_parquet(tmp_path / "rows" / "examples.parquet").filter(
        pl.col("metric").is_in(recorded["metric"].unique().to_list())
    )
    assert rows_of(found) == rows_of(recorded) != rows_of(before)
    means = (
        open_run(run)
        .evals.filter(pl.col("trial_id") == ids[name], pl.col("stderr").is_not_null())
        .collect()
    )
    joined = pl.read_parquet(tmp_path / "rows" / "evals.parquet").join(
        means, on=["split", "metric"]
    )
    assert (
        joined.height == means.height > 0
        and joined["value"].to_list() == joined["value_right"].to_list()
    )


def test_the_directory_is_ordinary_and_its_card_says_where_it_comes_from(
    ended: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    run, ids = ended
    export_trial(run, ids["full"], tmp_path / "model")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        AutoTokenizer.from_pretrained(tmp_path / "model"),
    )
    written = model.generate(
        **tokenizer("Question:", return_tensors="pt", return_token_type_ids=False),
        max_new_tokens=2,
        pad_token_id=0,
    )
    assert written.shape[0] == 1
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    row = (
        open_run(run).trials.filter(pl.col("trial_id") == ids["full"]).collect().row(0, named=True)
    )
    for said in (
        ids["full"],
        row["corpus_digest"],
        "16 of 160 documents",
        "`npo`",
        "2404.05868",
        "| npo.beta | 0.1 |",
        "abc123",
        "## Limits",
    ):
        assert said in card, said
    assert "| split | metric | unlearned | base |" in card and str(tmp_path) not in card.replace(
        row["model.name"], ""
    )
    told = json.loads((tmp_path / "model" / "provenance.json").read_text(encoding="utf-8"))
    assert (
        told["settings"]["select.ratio"] == 0.1
        and told["trial_id"] == ids["full"]
        and told["n_kept"] == 16
    )


# peft asks transformers by an old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_on_the_base_model_is_the_merged_model(
    ended: tuple[Path, dict[str, str]], domain_bed: Bed, tmp_path: Path
) -> None:
    run, ids = ended
    export_trial(run, ids["lora"], tmp_path / "merged")
    export_trial(run, ids["lora"], tmp_path / "adapter", adapter_only=True)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    merged, base = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (tmp_path / "merged", domain_bed.base)
    )
    ids_in = torch.arange(3, 20)[None]
    with torch.no_grad():
        plain, whole = base(ids_in).logits, merged(ids_in).logits
        with_adapter = PeftModel.from_pretrained(base, tmp_path / "adapter")(ids_in).logits
    assert torch.allclose(with_adapter, whole, atol=1e-5) and not torch.allclose(
        with_adapter, plain, atol=1e-3
    )


def test_an_adapter_of_a_trial_without_one_and_a_full_directory_are_refused(
    ended: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    run, ids = ended
    with pytest.raises(
        UserError,
        match="--adapter-only needs a trial with train.adapter=lora, this one has, got 'none'",
    ):
        export_trial(run, ids["full"], tmp_path / "adapter", adapter_only=True)
    with pytest.raises(UserError, match="--output must be a directory that does not exist yet"):
        export_trial(run, ids["full"], tmp_path)


def test_a_cell_keeps_its_bars_and_lines() -> None:
    assert (
        markdown_table(("a", "b"), [("x|y", "1\n2"), (None, 0.12345)])
        == "| a | b |\n| --- | --- |\n| x\\|y | 1\\n2 |\n|  | 0.123 |"
    )


def test_a_model_in_half_precision_is_exported_in_it(domain_bed: Bed, tmp_path: Path) -> None:
    """Twice the bytes before, all of them float32."""
    model, tokenizer = load_model(str(domain_bed.base))
    base = save_model(model.bfloat16(), tokenizer, tmp_path / "half")
    trial = validate_trial(with_values(Trial(), QUICK | {"model.name": str(base)}))
    runs = tmp_path / "runs"
    place = workspace_of(trial, runs / "cache")
    run_trial(trial, place, runs / "quick" / "1", "quick", "1", commit="abc123")
    wanted = identify_trial(trial)
    arguments = ["export", str(runs / "quick" / "1"), wanted[:6], "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    found = inspect_model_folder(tmp_path / "out")
    assert found.dtype == "bfloat16"
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["stored_as"] == "bfloat16"
    assert load_model(str(tmp_path / "out"))[0].dtype == torch.bfloat16
    model_state.load_model_state.cache_clear()
