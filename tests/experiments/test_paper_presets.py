"""The paper presets on local stand-ins: the same layouts of files and the same architecture, small,
so that only names differ on a cluster.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from rayunlearn.config import Trial, Value, flatten, trial_id, with_values
from rayunlearn.experiment import Experiment, load, override
from rayunlearn.models.load import save_model
from rayunlearn.planning.cost import GPU_FLOP_PER_SECOND, WorkloadSize, gpu_hours, size_of
from rayunlearn.planning.planner import PlannedTrial, Planner, grid_groups
from rayunlearn.registry import check_trial
from rayunlearn.storage.run import Run, open_run
from rayunlearn.trial.model_state import load_model_state
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.workspace import Workspace, workspace_of

ROOT = Path(__file__).parents[2] / "experiments"
WITH_PAPER = (
    "coreset_effect",
    "keyword_effect",
    "steps_or_data",
    "redundancy",
    "defences",
    "selectors",
    "keywords",
    "control",
    "truly_unlearned",
    "dilemma",
    "faithfulness",
)
# its study first trained TOFU to the models that it names
TAUGHT = ("control",)
WORDS = [
    "<unk>",
    "</s>",
    *(f"w{i}" for i in range(60)),
    "Question",
    ":",
    "Answer",
    "?",
    "Which",
    "of",
    *"ABCD",
    ".",
]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Value]:
    """A WMDP-like folder with MMLU beside it, and a Mistral of eight narrow blocks, as settings."""
    root = tmp_path_factory.mktemp("stand_in")
    corpus = root / "wmdp"
    rows = [
        {
            "question": f"Which of w{i % 60} w{i // 60} ?",
            "choices": ["w1", "w2", f"w{i % 50 + 3}", "w59"],
            "answer": 2,
        }
        for i in range(24)
    ]
    (corpus / "wmdp-bio").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), corpus / "wmdp-bio" / "test-00000-of-00001.parquet")
    for name, start in (("bio_remove_dataset", 0), ("bio-retain-corpus", 30)):
        lines = [
            {"text": " ".join(f"w{(start + i + j * j) % 60}" for j in range(12))} for i in range(30)
        ]
        (corpus / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (corpus / "mmlu" / "all").mkdir(parents=True)
    other = [
        {**row, "question": f"w{i} {row['question']}", "subject": "astronomy"}
        for i, row in enumerate(rows)
    ]
    pq.write_table(
        pa.Table.from_pylist(other), corpus / "mmlu" / "all" / "test-00000-of-00001.parquet"
    )
    model = save_model(tiny_mistral(), tokenizer(), root / "model")
    return {
        "data.path": str(corpus),
        "data.options": "corpora=true,documents=20,strict=false",
        "model.name": str(model),
    }


def tiny_mistral() -> MistralForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
        return MistralForCausalLM(MistralConfig(**shape, vocab_size=len(WORDS), pad_token_id=None))


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def paper(name: str, changes: Mapping[str, Value]) -> Experiment:
    return override(load(ROOT / f"{name}.py", preset="paper"), changes)


@pytest.mark.parametrize("name", WITH_PAPER)
def test_every_cell_of_a_paper_preset_is_a_trial_that_the_families_take(name: str) -> None:
    experiment = paper(name, {})
    cells = [cell for group in grid_groups(experiment, check=check_trial) for cell in group.cells]
    assert len(cells) >= 15 and experiment.version == "1-paper" and not experiment.search
    assert all("/" in cell.model.name and cell.model.teach == (name in TAUGHT) for cell in cells)


def test_the_study_s_rates_and_lengths_stand_in_its_cells() -> None:
    """Table B1: RMU 5e-5, one epoch of 600; NPO 7e-6, 140 steps of 4, at every ratio."""
    cells = [
        flatten(cell)
        for group in grid_groups(paper("coreset_effect", {}), check=check_trial)
        for cell in group.cells
    ]
    seen = {
        (c["method.forget"], c["train.learning_rate"], c["train.unit"], c["train.length"])
        for c in cells
    }
    assert seen == {("rmu", 5e-5, "presentations", 600.0), ("npo", 7e-6, "steps", 140.0)}
    random = [c for c in cells if c["select.name"] == "random" and c["method.forget"] == "rmu"]
    assert (
        sorted({c["select.ratio"] for c in random}) == [0.01, 0.05, 0.1, 1.0] and len(random) == 20
    )


def test_keywords_take_the_study_s_300_epochs_and_whole_documents_its_presentations() -> None:
    cells = [
        flatten(cell)
        for group in grid_groups(paper("keywords", {}), check=check_trial)
        for cell in group.cells
    ]
    assert {
        (c["select.text"] == "original", c["train.unit"], c["train.length"]) for c in cells
    } == {(True, "presentations", 600.0), (False, "epochs", 300.0)}


def test_the_dilemma_preset_has_six_methods_on_three_benchmarks_and_muse() -> None:
    cells = [
        flatten(cell)
        for group in grid_groups(paper("dilemma", {}), check=check_trial)
        for cell in group.cells
    ]
    methods = {(c["method.forget"], c["method.retain"]) for c in cells}
    assert methods == {
        ("ga", "nll"),
        ("ga", "kl"),
        ("npo", "nll"),
        ("npo", "kl"),
        ("task_vector", "none"),
        ("rmu", "activation"),
    }
    assert len({(c["data.name"], c["method.forget"], c["method.retain"]) for c in cells}) == 18
    rmu = {
        (c["data.name"], c["train.learning_rate"], c["train.length"], c["train.unit"])
        for c in cells
        if c["method.forget"] == "rmu"
    }
    assert rmu == {
        ("muse-news", 1e-3, 10.0, "epochs"),
        ("muse-books", 1e-3, 1.0, "epochs"),
        ("wmdp-bio", 5e-5, 600.0, "presentations"),
    }


def test_the_coreset_preset_runs_on_the_stand_in(
    stand_in: Mapping[str, Value], tmp_path: Path
) -> None:
    """One small coreset with each method, by the whole path of a trial; the same names as on a
    cluster, other values.
    """
    less = {
        "train.batch_size": 4,
        "method.forget": "rmu",
        "method.retain": "activation",
        "select.ratio": 0.1,
        "train.length": 8.0,
    }
    cells = [
        cell
        for group in grid_groups(paper("coreset_effect", {**stand_in, **less}), check=check_trial)
        for cell in group.cells
    ]
    trial = next(cell for cell in cells if cell.select.name == "random")
    workspace = workspace_of(trial, tmp_path / "cache")
    run_trial(trial, workspace, tmp_path / "run", "coreset_effect", "1-paper", "")
    run = open_run(tmp_path / "run")
    row = run.trials.collect().row(0, named=True)
    assert (row["status"], row["n_forget"], row["n_kept"], row["presentations"]) == (
        "complete",
        20,
        2,
        8,
    )
    assert_scored_as_wmdp(run, workspace)
    assert (
        row["train.parameters"] == r"layers\.(5|6|7)\.mlp\.down_proj\.weight$"
        and row["parameters_trained"] == 3 * 16 * 24
    )


def assert_scored_as_wmdp(run: Run, workspace: Workspace) -> None:
    """As lm-evaluation-harness does, by hand: question and options in the prompt, the model's own
    logits after "Answer:", the highest of the letters A to D. The trial's model is the worker's.
    """
    state = load_model_state(workspace.base)
    letters = [state.tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"]
    chosen = {}
    for split in ("forget", "retain"):
        for document in workspace.corpus.probes[split]:
            true = workspace.corpus.true_letters[document.doc_id]
            options = [*document.wrong[:true], document.answer, *document.wrong[true:]]
            lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
            head = "The following are multiple choice questions (with answers).\n\n"
            text = head + "\n".join([document.prompt, *lines, "Answer:"])
            ids = torch.tensor([state.tokenizer.encode(text, add_special_tokens=False)])
            with torch.no_grad():
                logits = state.model(input_ids=ids).logits[0, -1, letters]
            chosen[document.doc_id] = float(int(logits.argmax()) == true)
    rows = run.examples.filter(pl.col("metric") == "letter_choice").collect()
    assert dict(rows.select("doc_id", "value").iter_rows()) == chosen and len(chosen) == 48
    means = run.evals.filter(pl.col("metric") == "letter_choice").collect()
    assert dict(means.select("split", "n").iter_rows()) == {"forget": 24, "retain": 24}


def test_gpu_hours_are_six_flops_per_parameter_and_token(stand_in: Mapping[str, Value]) -> None:
    """Two trials of 10 steps x 4 texts x 5 tokens x 2 sides: 6 x 1e9 x 400 / 1.2e14 s = 0.02 s
    each.
    """
    trials = [
        check_trial(
            with_values(Trial(), {"train.length": 10.0, "train.batch_size": 4, "train.seed": seed})
        )
        for seed in (0, 1)
    ]
    rows = tuple(
        PlannedTrial(trial_id=str(at), trial=trial, role="grid", group="{}", tuning="none")
        for at, trial in enumerate(trials)
    )

    class Plan:
        expected: tuple[PlannedTrial, ...] = ()

    plan: Any = Plan()
    plan.rows = rows
    hours = gpu_hours(
        plan, 2, size_of=lambda _: WorkloadSize(parameters=1e9, tokens_per_document=5, n_forget=10)
    )
    assert hours == pytest.approx(2 * 6 * 1e9 * 400 / GPU_FLOP_PER_SECOND / 3600)


def test_a_plan_of_the_preset_knows_its_gpu_hours_on_the_stand_in(
    stand_in: Mapping[str, Value],
) -> None:
    agenda = Planner(
        paper("coreset_effect", stand_in),
        check_trial,
        lambda trial: trial_id(trial, "corpus", "model"),
    ).agenda({})
    assert 0 < gpu_hours(agenda, agenda.total, size_of=size_of) < 1e-3
