"""Weight attacks: whoever has the weights may train, round, prune, blur or steer them. Each changes
`model` and returns None.

Training attacks minimise the plain NLL of their text with the house's own loop, all weights, AdamW
at a linear schedule without warm-up. The papers mostly train LoRA adapters on 7 B models; full
training of a small model is ours, and so is every default here. Rates and steps are searched by
`rayunlearn attack`, because a weak attack says nothing of a model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rayunlearn.attacks.base import AttackRow, AttackTraining
from rayunlearn.attacks.perturbation import (
    direction_ablation,
    direction_ablation_retain,
    magnitude_pruning,
    weight_noise,
)
from rayunlearn.attacks.quantization import four_bit_normal_float, round_to_nearest
from rayunlearn.data.tokenize import Encoded, collate
from rayunlearn.errors import require
from rayunlearn.methods.objective import batch_indices
from rayunlearn.models.forward import token_nll
from rayunlearn.ranges import Count, Positive, Whole
from rayunlearn.train.loop import Callbacks, OptimizerSettings, optimise
from rayunlearn.train.step import StepLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


OnStep = Callable[[int], bool]


def relearning(
    model: PreTrainedModel,
    forget_sequences: Sequence[Encoded],
    seed: int,
    watch: OnStep,
    *,
    documents: Whole = 0,
    learning_rate: Positive = 1e-3,
    steps: Count = 50,
    batch_size: Count = 4,
) -> None:
    """Train on `documents` forget documents (0: all), in-domain relearning. Hu et al. 2406.13356;
    steps as in 2510.07626 (100 of 4).

    What is measured is the whole forget split, facts that these documents state among them: with
    few documents look at `heldout_relearning` too.
    """
    chosen = forget_sequences[: documents or None]
    _train(model, chosen, seed, watch, AttackTraining(learning_rate, steps, batch_size))


def heldout_relearning(
    model: PreTrainedModel,
    held_in_sequences: Sequence[Encoded],
    seed: int,
    watch: OnStep,
    *,
    learning_rate: Positive = 1e-3,
    steps: Count = 50,
    batch_size: Count = 4,
) -> None:
    """Train on questions and answers of half of the facts and be asked the others, which do not
    follow from them. RTT, 2410.08827.

    On a synthetic dataset the values of an attribute are used equally often, so that half of the
    facts shifts a guess at the others a little; the same attack on gold has that shift too. RTT
    trains with Lion for six epochs; the loop here is AdamW.
    """
    _train(model, held_in_sequences, seed, watch, AttackTraining(learning_rate, steps, batch_size))


def unrelated_training(
    model: PreTrainedModel,
    unrelated_sequences: Sequence[Encoded],
    seed: int,
    watch: OnStep,
    *,
    documents: Whole = 0,
    learning_rate: Positive = 1e-3,
    steps: Count = 50,
    batch_size: Count = 4,
) -> None:
    """Train on text about neither side: `attack.file`, else our own scenes. Doshi & Stickland
    2411.12103 take OpenWebText.

    They train 1,000 steps of one chunk at 2e-4 through LoRA and look every 100.
    """
    chosen = unrelated_sequences[: documents or None]
    _train(model, chosen, seed, watch, AttackTraining(learning_rate, steps, batch_size))


def _train(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    seed: int,
    watch: OnStep,
    training: AttackTraining,
) -> None:
    """Every step `batch_size` documents, drawn as unlearning draws them; `watch` is told of every
    step but the last.
    """
    require(len(sequences) > 0, "a training attack needs at least one document", len(sequences))

    def loss_of_step(step: int) -> StepLoss:
        positions = batch_indices(len(sequences), training.batch_size, step, seed)
        batch = collate([sequences[position] for position in positions]).to(model.device)
        return StepLoss(
            token_nll(model, batch).sum() / batch.labelled.sum(),
            n_tokens=int(batch.present.sum()),
            n_documents=training.batch_size,
        )

    model.requires_grad_(True)
    rate = training.learning_rate
    log = optimise(
        model,
        loss_of_step,
        steps=training.steps,
        optimizer=OptimizerSettings(learning_rate=rate, warmup_fraction=0.0),
        callbacks=Callbacks(check_every=1, keep_going=watch),
    )
    if log.outcome == "diverged":
        raise DivergedError(f"the attack's loss was no number at learning rate {rate:g}")


class DivergedError(RuntimeError):
    """A training attack ended in numbers that are none; there is no model left to measure."""


def draw_documents(items: Sequence[Any], seed: int) -> list[Any]:
    """The items in an order drawn by the seed: the first n of them are the n
    that an attack gets.
    """
    return random.Random(f"attack {seed}").sample(list(items), len(items))


UNRELATED_TEXT = "base, gold, and as many steps on unrelated text"

WEIGHTS = {
    row.function.__name__: row
    for row in (
        AttackRow(
            function=relearning,
            kind="weights",
            title="train on forget documents",
            source="Hu et al. 2406.13356; 2510.07626",
            control=UNRELATED_TEXT,
            companion="unrelated_training",
            trains=True,
        ),
        AttackRow(
            function=heldout_relearning,
            kind="weights",
            title="train on half of the facts, ask the others",
            source="Deeb & Roger 2410.08827",
            control=UNRELATED_TEXT,
            companion="unrelated_training",
            trains=True,
            holds_out=True,
        ),
        AttackRow(
            function=unrelated_training,
            kind="weights",
            title="train on unrelated text",
            source="Doshi & Stickland 2411.12103",
            trains=True,
        ),
        AttackRow(
            function=round_to_nearest,
            kind="weights",
            of_matrices=True,
            title="quantise, round to nearest",
            source="Zhang et al. 2410.16454",
        ),
        AttackRow(
            function=four_bit_normal_float,
            kind="weights",
            of_matrices=True,
            title="quantise to NF4 (bitsandbytes)",
            source="Dettmers et al. 2305.14314",
            package="bitsandbytes",
        ),
        AttackRow(
            function=magnitude_pruning,
            kind="weights",
            of_matrices=True,
            title="prune the smallest weights",
            source="Han et al. 1506.02626",
        ),
        AttackRow(
            function=weight_noise,
            kind="weights",
            of_matrices=True,
            title="add Gaussian noise to weights",
            source="ours",
        ),
        AttackRow(
            function=direction_ablation,
            kind="weights",
            title="ablate the direction away from base",
            source="Lucki et al. 2409.18025; 2406.11717",
            holds_out=True,
        ),
        AttackRow(
            function=direction_ablation_retain,
            kind="weights",
            title="ablate the direction forget - retain",
            source="Lucki et al. 2409.18025",
            holds_out=True,
        ),
    )
}
