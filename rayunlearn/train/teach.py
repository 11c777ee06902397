"""Teach a model the corpus: `base` learns all of it, `gold` everything but the forget side. What
unlearning starts from, and its goal.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.config import Trial, digest, flatten, with_teaching
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.prompt_templates import PROMPT_TEMPLATES
from rayunlearn.data.tokenize import Encoded, collate, encode_documents
from rayunlearn.errors import require, unknown_name
from rayunlearn.lazy import torch
from rayunlearn.models.forward import token_nll
from rayunlearn.models.load import load_model, save_model
from rayunlearn.models.scratch import SHAPES, build_model, build_tokenizer
from rayunlearn.train.device import computing, precision_of_products
from rayunlearn.train.loop import OptimizerSettings, TrainLog, optimise
from rayunlearn.train.step import StepLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINED_ROLES = ("base", "gold")
BATCH_SIZE = 16
N_EPOCHS = {"tiny": 35, "small": 20}
# Everything beside config.Model and the corpus that decides the weights: part of a trained model's
# identity.
RECIPE: dict[str, Any] = {
    # raised when code changes the weights in a way the numbers below do not show
    "version": 2,
    "batch_size": BATCH_SIZE,
    "epochs": N_EPOCHS,
    "schedule": "cosine",
    "warmup_fraction": 0.05,
    "weight_decay": 0.01,
    "shapes": {size: asdict(shape) for size, shape in SHAPES.items()},
    # they are in the vocabulary
    "wordings": digest(PROMPT_TEMPLATES),
}


def train_base_or_gold(
    trial: Trial,
    corpus: Corpus,
    role: str,
    directory: Path,
    progress: Callable[[int, int], None],
    *,
    cache: Path | None = None,
) -> None:
    """Train the model of `trial.model` on the corpus and write it, with its tokenizer and
    training.json, to `directory`.

    `role` base: forget, retain and the extra training documents; gold: the same without the forget
    side. Base and gold are matched in EPOCHS: both see each of their documents equally often, so
    gold takes fewer optimizer steps. The folder appears whole, as the last act. `progress(step,
    steps)` is called after every step. `cache`: where a machine's faster precision is kept, for
    `model.teach_precision=fastest`; tried here without one. Raises UserError for an unknown role or
    a corpus that leaves nothing to learn.
    """
    started = time.perf_counter()
    documents = training_documents(corpus, role)
    model, tokenizer = starting_point(trial, corpus)
    sequences = encode_documents(documents, tokenizer, trial.data.template, trial.data.max_tokens)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    with one_thread():
        products = precision_of_products(model, trial.model.teach_precision, cache)
        log = train_language_model(model, sequences, trial, progress, products)
    record = {
        "role": role,
        "documents": len(documents),
        "computed_in": products,
        "seconds": round(time.perf_counter() - started, 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        **_training_record(trial, log),
    }
    save_model(
        model, tokenizer, directory, notes={"training.json": json.dumps(record, indent=1) + "\n"}
    )


def _training_record(trial: Trial, log: TrainLog) -> dict[str, object]:
    """How a model was trained, for training.json."""
    return {
        "steps": len(log.rows),
        "learning_rate": learning_rate(trial),
        "losses": [round(row.loss, 6) for row in log.rows],
        "config": {
            name: value
            for name, value in flatten(replace(trial, model=with_teaching(trial.model))).items()
            if name.startswith(("data.", "model."))
        },
        "recipe": RECIPE,
    }


def training_documents(corpus: Corpus, role: str) -> list[Document]:
    """The different documents a role learns from: gold leaves out `forget` and all `extra_training`
    keys that start with "forget".
    """
    if role not in TRAINED_ROLES:
        raise unknown_name("role", role, TRAINED_ROLES)
    extra_training = [
        d
        for split, part in corpus.extra_training.items()
        if role == "base" or not split.startswith("forget")
        for d in part
    ]
    documents = [*(corpus.forget if role == "base" else ()), *corpus.retain, *extra_training]
    require(
        bool(documents), f"a corpus must leave {role} something to learn; documents", len(documents)
    )
    return list({d.doc_id: d for d in documents}.values())


def starting_point(trial: Trial, corpus: Corpus) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model before training: built from `model.seed` with the whole corpus's vocabulary and
    `PROMPT_TEMPLATES`, or loaded.
    """
    if trial.model.name != "scratch":
        return load_model(trial.model.name, dtype=torch.float32)
    require(
        trial.data.template != "chat",
        "data.template must not be 'chat' when model.name is 'scratch'",
        trial.data.template,
    )
    everything = [
        *training_documents(corpus, "base"),
        *(d for part in corpus.probes.values() for d in part),
    ]
    tokenizer = build_tokenizer(
        [*training_texts(everything, trial.data.template), *PROMPT_TEMPLATES]
    )
    return build_model(trial.model.size, len(tokenizer), trial.model.seed), tokenizer


def training_texts(documents: Sequence[Document], template: str) -> Iterator[str]:
    """Every text of the documents as it is encoded: prompts in the template, answers with the white
    space before them: the template's own, or a blank.
    """
    before = template[len(template.rstrip()) :] or " "
    for d in documents:
        yield from (
            template.replace("{prompt}", prompt)
            for prompt in (d.prompt, d.prompt_paraphrase)
            if prompt
        )
        yield from (
            before + text if d.prompt else text
            for text in (d.answer, d.paraphrase, *d.wrong)
            if text
        )


def train_language_model(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    trial: Trial,
    progress: Callable[[int, int], None],
    products: str,
) -> TrainLog:
    """AdamW on the mean NLL of each batch's label tokens, computed in `products`. Batches hold
    sequences of similar length.
    """
    how, seed = with_teaching(trial.model), trial.model.seed
    epochs, size = how.teach_epochs or N_EPOCHS[how.size], how.teach_batch_size or BATCH_SIZE
    batches = [
        batch for epoch in range(epochs) for batch in batches_of(sequences, seed, epoch, size)
    ]

    def loss_of_step(step: int) -> StepLoss:
        chosen = [sequences[position] for position in batches[step]]
        batch = collate(chosen).to(model.device)
        progress(step, len(batches))
        with computing(model.device, products):
            nll = token_nll(model, batch).sum() / batch.labelled.sum()
        return StepLoss(
            nll,
            n_tokens=int(batch.present.sum()),
            n_documents=len(chosen),
        )

    optimizer = OptimizerSettings(
        learning_rate=learning_rate(trial),
        schedule=RECIPE["schedule"],
        warmup_fraction=RECIPE["warmup_fraction"],
        weight_decay=RECIPE["weight_decay"],
    )
    log = optimise(model, loss_of_step, steps=len(batches), optimizer=optimizer)
    progress(len(batches), len(batches))
    return log


def learning_rate(trial: Trial) -> float:
    """Peak rate: that of `config.with_teaching` as it is for a loaded model and the tiny size; a
    wider model built here takes it times 96 / width. (Measured on the small domain dataset: at 2e-3
    the facts are learned in the last fifth of 20 epochs, when the schedule has fallen; at 1e-3 in
    the first half.)
    """
    rate = with_teaching(trial.model).teach_learning_rate
    if trial.model.name != "scratch":
        return rate
    return rate * SHAPES["tiny"].width / SHAPES[trial.model.size].width


def batches_of(
    sequences: Sequence[Encoded], seed: int, epoch: int, size: int = BATCH_SIZE
) -> list[list[int]]:
    """Positions of all sequences in batches of `size` and similar length, in random order: a
    function of what is given.
    """
    rng = random.Random(f"teach {seed} {epoch}")
    order = sorted(
        range(len(sequences)), key=lambda position: (len(sequences[position].ids), rng.random())
    )
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    rng.shuffle(batches)
    return batches


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread inside, the former number outside: sums are then added in one order, so
    weights repeat exactly.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
