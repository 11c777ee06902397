"""What every family of models is put through: it learns, is unlearned by NPO, RMU and LoRA, scored,
attacked, explained and exported; or one line says what it cannot, and docs/limits.md has it.

A new family is tested by being listed in `tests/families.py`.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest
import torch

from rayunlearn.config import Trial, Value, with_values
from rayunlearn.data.documents import Document
from rayunlearn.errors import UserError
from rayunlearn.interop.export import export_trial
from rayunlearn.metrics.evaluate import encode_probes
from rayunlearn.models.load import load_model, save_model
from rayunlearn.models.logits import can_split
from rayunlearn.models.scratch import build_tokenizer
from rayunlearn.storage.run import open_run
from rayunlearn.trial import model_state
from rayunlearn.trial.attack import run_attack_or_trial
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.workspace import prepare_models, validate_trial, workspace_of
from tests.families import FAMILIES, toy_model

NAMES = ("Ada", "Bo", "Cy", "Di")
COLOURS = ("red", "blue", "green", "grey")
# One of each kind of block runs everything here; the others, whose blocks are among these, do it in
# the slow suite. Packing, logits, matrices, adapters, patching, diagnostics and scores are held
# against every family in their own files.
OF_EACH_KIND = (
    "llama",
    "mixtral",
    "gemma2",
    "phi",
    "gpt2",
    "gpt_neox",
    "falcon",
    "cohere2",
    "mamba",
)
# what a family cannot, by the sentence that says so on the driver
REFUSED = {
    ("mixtral", "lora"): "must reach 50% of the weights that train.parameters names",
    ("qwen2_moe", "lora"): "must reach 50% of the weights that train.parameters names",
    ("mamba", "lora"): "cannot be put into MambaForCausalLM",
}
UNLEARNED: dict[str, dict[str, Value]] = {
    "npo": {
        "select.name": "grand",
        "grand.epochs": 1,
        "explain.documents": 1,
        "explain.gradient_steps": 2 if find_spec("captum") else 0,
    },
    "rmu": {"method.forget": "rmu", "method.retain": "activation", "select.name": "influence"},
    "lora": {"train.adapter": "lora", "lora.rank": 2},
}
ATTACKS: tuple[dict[str, Value], ...] = (
    {"attack.name": "round_to_nearest"},
    {"attack.name": "gptq"},
    {"attack.name": "direction_ablation"},
    {"attack.name": "logit_lens"},
    {"attack.name": "linear_shortcut"},
    {"attack.name": "gcg", "gcg.steps": 1, "gcg.length": 2, "gcg.candidates": 2},
    {"attack.name": "relearning", "relearning.steps": 1},
)


def documents(colours: tuple[str, ...], thing: str) -> list[dict[str, object]]:
    return [
        {"question": f"{name} has a {thing} that is", "answer": colour, "wrong_answers": [other]}
        for name, colour, other in zip(NAMES, colours, (*colours[1:], colours[0]), strict=True)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four questions to forget and four to retain."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, rows in (
        ("forget", documents(COLOURS, "cat")),
        ("retain", documents(COLOURS[::-1], "dog")),
    ):
        lines = "\n".join(map(json.dumps, rows))
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    yield
    model_state.load_model_state.cache_clear()


def taught_trial(family: str, corpus: Path, tmp_path: Path) -> Trial:
    """A trial on a toy model of the family that is trained on the corpus first."""
    words = [f"{name} has a cat dog that is {' '.join(COLOURS)}" for name in NAMES]
    tokenizer = build_tokenizer(words)
    save_model(toy_model(family, len(tokenizer)), tokenizer, tmp_path / "start")
    return with_values(
        Trial(),
        {
            "data.name": "files",
            "data.path": str(corpus),
            "data.template": "{prompt}",
            # the positions of the toy models
            "data.max_tokens": 128,
            "model.name": str(tmp_path / "start"),
            "model.teach_epochs": 8,
            "method.layer": 0,
            "select.ratio": 0.5,
            "train.length": 2,
            "train.batch_size": 2,
            "train.learning_rate": 1e-3,
        },
    )


def run(trial: Trial, tmp_path: Path) -> str:
    """The id of a trial that has finished; its model is made where it is not there yet."""
    checked, runs = validate_trial(trial), tmp_path / "runs"
    prepare_models(checked, runs / "cache", lambda _role, _done, _steps: None)
    workspace = workspace_of(checked, runs / "cache")
    run_attack_or_trial(checked, workspace, runs / "families" / "1", "families", "1")
    return identify_trial(checked)


def mean_of(evals: pl.DataFrame, trial_id: str, metric: str, split: str = "forget") -> float:
    is_chosen = (pl.col("metric") == metric) & (pl.col("split") == split)
    return float(evals.filter(is_chosen, trial_id=trial_id)["value"].item(0))


def own_probability(folder: Path, corpus: Path) -> float:
    """Mean over the forget questions of exp(-mean NLL), from the model's own forward pass."""
    model, tokenizer = load_model(str(folder))
    lines = (corpus / "forget.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    asked = [Document(prompt=row["question"], answer=row["answer"]) for row in rows]
    values = []
    for probe in encode_probes({"forget": asked}, tokenizer, "{prompt}", 256):
        ids, start = torch.tensor([probe.answer.ids]), probe.answer.start
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, start - 1 : -1].float()
        values.append(float((-torch.nn.functional.cross_entropy(logits, ids[0, start:])).exp()))
    assert can_split(model)
    return sum(values) / len(values)


@pytest.mark.parametrize(
    "family",
    [
        name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_a_family_does_all_that_an_experiment_asks_or_says_what_it_cannot(
    family: str, corpus: Path, tmp_path: Path
) -> None:
    trial = taught_trial(family, corpus, tmp_path)
    base = run(with_values(trial, {"stage": "base"}), tmp_path)
    unlearned: dict[str, str] = {}
    for name, settings in UNLEARNED.items():
        if (family, name) in REFUSED:
            with pytest.raises(UserError, match=REFUSED[family, name]):
                validate_trial(with_values(trial, settings))
        else:
            unlearned[name] = run(with_values(trial, settings), tmp_path)
    npo = with_values(trial, UNLEARNED["npo"])
    attacks = {str(a["attack.name"]): run(with_values(npo, a), tmp_path) for a in ATTACKS}
    folder = tmp_path / "runs" / "families" / "1"
    opened = open_run(folder)
    errors = opened.trials.filter(pl.col("status") != "complete").collect()["error"].to_list()
    assert not errors
    evals = opened.evals.collect()
    # it has learned, and its score is the model's own
    taught = workspace_of(validate_trial(trial), tmp_path / "runs" / "cache").base
    probability = mean_of(evals, base, "probability")
    assert probability == pytest.approx(own_probability(Path(taught), corpus), abs=1e-4)
    assert probability > own_probability(tmp_path / "start", corpus)
    measured = set(evals["trial_id"])
    assert measured == {base, *unlearned.values(), *attacks.values()}, attacks
    assert set(opened.attributions.collect()["trial_id"]) == {unlearned["npo"]}
    # exported, it is the model that was measured
    export_trial(folder, unlearned["npo"], tmp_path / "exported")
    probability = mean_of(evals, unlearned["npo"], "probability")
    assert probability == pytest.approx(own_probability(tmp_path / "exported", corpus), abs=1e-4)
