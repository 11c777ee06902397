"""Weight attacks: whoever has the weights may train, round, prune, blur or steer them. Each changes
`model` and returns None.

Training attacks minimise the plain NLL of their text with the house's own loop, all weights, AdamW
at a linear schedule without warm-up. The papers mostly train LoRA adapters on 7 B models; full
training of a small model is ours, and so is every default here. Rates and steps are searched by
`rayunlearn attack`, because a weak attack says nothing of a model.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayunlearn.attacks.table import Attack
from rayunlearn.data.encode import Encoded, by_length, collate
from rayunlearn.errors import UserError, require
from rayunlearn.methods.objective import stream
from rayunlearn.metrics.inputs import Probe
from rayunlearn.models.forward import blocks, evaluating, hidden_states, token_nll
from rayunlearn.ranges import Count, Positive, Rule, UnitInterval, Whole
from rayunlearn.train.loop import optimise
from rayunlearn.train.step import StepLoss

Bits = Annotated[int, Rule("must be from 2 to 8", lambda x: 2 <= x <= 8)]
Watch = Callable[[int], bool]


def relearning(
    model: PreTrainedModel,
    forget_sequences: Sequence[Encoded],
    seed: int,
    watch: Watch,
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
    _train(
        model, chosen, seed, watch, learning_rate=learning_rate, steps=steps, batch_size=batch_size
    )


def heldout_relearning(
    model: PreTrainedModel,
    held_in_sequences: Sequence[Encoded],
    seed: int,
    watch: Watch,
    *,
    learning_rate: Positive = 1e-3,
    steps: Count = 50,
    batch_size: Count = 4,
) -> None:
    """Train on questions and answers of half of the facts and be asked the others, which do not
    follow from them. RTT, 2410.08827.

    On a test bed the values of an attribute are used equally often, so that half of the facts
    shifts a guess at the others a little; the same attack on gold has that shift too. RTT trains
    with Lion for six epochs; the loop here is AdamW.
    """
    _train(
        model,
        held_in_sequences,
        seed,
        watch,
        learning_rate=learning_rate,
        steps=steps,
        batch_size=batch_size,
    )


def unrelated_training(
    model: PreTrainedModel,
    unrelated_sequences: Sequence[Encoded],
    seed: int,
    watch: Watch,
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
    _train(
        model, chosen, seed, watch, learning_rate=learning_rate, steps=steps, batch_size=batch_size
    )


def round_to_nearest(model: PreTrainedModel, *, bits: Bits = 4) -> None:
    """Quantise the linear weights of the blocks to `bits` and back: symmetric, one scale per output
    channel.

    w -> s round(w / s) with s = max|w| / (2^(bits - 1) - 1). Zhang et al. 2410.16454 quantise with
    bitsandbytes, GPTQ and AWQ; rounding to nearest is the plainest. Embeddings, norms and head
    stay.
    """
    for weight in _linear_weights(model):
        weight.copy_(rounded(weight, bits))


def rounded(weight: Tensor, bits: int) -> Tensor:
    """(out, in) -> the nearest of 2^bits - 1 evenly spaced values of each row, the largest |w| of a
    row exact.
    """
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / (
        2 ** (bits - 1) - 1
    )
    return (weight / scale).round() * scale


def four_bit_normal_float(model: PreTrainedModel) -> None:
    """NF4 (QLoRA, 2305.14314) and back, by bitsandbytes, in its blocks of 64: what `load_in_4bit`
    computes with. Used by 2410.16454.

    Raises UserError where bitsandbytes is not installed (`pip install rayunlearn[quantisation]`).
    """
    functional = _bitsandbytes()
    for weight in _linear_weights(model):
        packed, state = functional.quantize_4bit(weight.contiguous(), quant_type="nf4")
        weight.copy_(functional.dequantize_4bit(packed, state))


def magnitude_pruning(model: PreTrainedModel, *, share: UnitInterval = 0.3) -> None:
    """Set the `share` of smallest |w| of every linear weight of the blocks to zero. Han et al.
    1506.02626, without training after it.

    Lucki et al. 2409.18025 prune by gradient scores on forget and utility data; magnitude alone
    needs no data and is weaker.
    """
    for weight in _linear_weights(model):
        n = int(share * weight.numel())
        if n:
            smallest = weight.abs().flatten().topk(n, largest=False).indices
            weight.view(-1)[smallest] = 0.0


def weight_noise(model: PreTrainedModel, seed: int, *, relative: UnitInterval = 0.1) -> None:
    """Add Gaussian noise to every linear weight of the blocks, of `relative` times the standard
    deviation of that weight. Ours.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in _linear_weights(model):
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        weight.add_(noise * (relative * weight.std()))


def direction_ablation(
    model: PreTrainedModel,
    base: PreTrainedModel,
    held_in: Sequence[Probe],
    leaving: ExitStack,
) -> None:
    """Take out of every block's output its mean difference from the base model's on forget
    questions: h - (h.v) v.

    Lucki et al. 2409.18025, "orthogonalisation", variant unlearned - base at all layers, after the
    refusal direction of Arditi et al. 2406.11717. One v per block, over the positions that predict
    the answers of `held_in`; the papers' filter for outlier tokens and their choice of questions
    are left out. On base itself there is no difference and nothing is taken out.
    """
    sequences = [probe.answer for probe in held_in]
    differences = [
        mine - theirs
        for mine, theirs in zip(
            mean_outputs(model, sequences),
            mean_outputs(base, sequences),
            strict=True,
        )
    ]
    _take_out(model, differences, leaving)


def direction_ablation_retain(
    model: PreTrainedModel,
    held_in: Sequence[Probe],
    retain_sequences: Sequence[Encoded],
    leaving: ExitStack,
) -> None:
    """The same with the difference of forget questions from retain documents inside the model
    itself, which needs no base model.

    The variants "vs MMLU" and "vs wikitext" of 2409.18025, with the retain side in their place.
    Base and gold lose what tells the sides apart too.
    """
    forget = mean_outputs(model, [probe.answer for probe in held_in])
    retain = mean_outputs(model, retain_sequences[: len(held_in)])
    _take_out(model, [mine - theirs for mine, theirs in zip(forget, retain, strict=True)], leaving)


def mean_outputs(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
) -> list[Tensor]:
    """Mean output (D,) of each block over the positions that predict a label, float32 on the
    model's device.
    """
    sums = [torch.zeros(model.config.hidden_size, device=model.device) for _ in blocks(model)]
    n_labels = 0
    with evaluating(model):
        for positions in by_length(sequences, 8192):
            batch = collate([sequences[p] for p in positions]).to(model.device)
            n_labels += len(batch.places)
            for layer, total in enumerate(sums):
                total += (
                    hidden_states(model, batch, layer)
                    .float()
                    .flatten(0, 1)
                    .index_select(0, batch.places - 1)
                    .sum(0)
                )
    require(n_labels > 0, "ablating a direction needs questions to find it from; labels", n_labels)
    return [total / n_labels for total in sums]


def without(hidden: Tensor, direction: Tensor) -> Tensor:
    """(..., D) less its part along `direction` (D,) of any length; unchanged where the direction is
    zero.
    """
    length = direction.norm()
    if length == 0:
        return hidden
    unit = (direction / length).to(hidden)
    return hidden - (hidden @ unit)[..., None] * unit


def _take_out(model: PreTrainedModel, directions: Sequence[Tensor], leaving: ExitStack) -> None:
    for block, direction in zip(blocks(model), directions, strict=True):
        leaving.callback(block.register_forward_hook(partial(_ablated, direction=direction)).remove)


def _ablated(_module: nn.Module, _inputs: Any, output: Any, *, direction: Tensor) -> Any:
    """Some families' blocks return the hidden states alone, others a tuple that begins with them."""
    if isinstance(output, Tensor):
        return without(output, direction)
    return (without(output[0], direction), *output[1:])


def _train(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    seed: int,
    watch: Watch,
    *,
    learning_rate: float,
    steps: int,
    batch_size: int,
) -> None:
    """Every step `batch_size` documents, drawn as unlearning draws them; `watch` is told of every
    step but the last.
    """
    require(len(sequences) > 0, "a training attack needs at least one document", len(sequences))

    def loss_of_step(step: int) -> StepLoss:
        batch = collate([sequences[p] for p in stream(len(sequences), batch_size, step, seed)]).to(
            model.device
        )
        return StepLoss(
            token_nll(model, batch).sum() / batch.labelled.sum(),
            n_tokens=int(batch.present.sum()),
            n_documents=batch_size,
        )

    model.requires_grad_(True)
    log = optimise(
        model,
        loss_of_step,
        steps=steps,
        learning_rate=learning_rate,
        warmup_fraction=0.0,
        check_every=1,
        keep_going=watch,
    )
    if log.ended == "diverged":
        raise DivergedError(f"the attack's loss was no number at learning rate {learning_rate:g}")


class DivergedError(RuntimeError):
    """A training attack ended in numbers that are none; there is no model left to measure."""


def _linear_weights(model: PreTrainedModel) -> Iterable[Tensor]:
    """The weight matrices of the linear modules inside the blocks, as data to write to."""
    return [
        module.weight.data
        for block in blocks(model)
        for module in block.modules()
        if isinstance(module, nn.Linear)
    ]


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes.functional as functional
    except ImportError as error:
        raise UserError(
            "four_bit_normal_float needs bitsandbytes (pip install 'rayunlearn[quantisation]'),"
            f" got {error}"
        ) from error
    return functional


def drawn(items: Sequence[Any], seed: int) -> list[Any]:
    """The items in an order drawn by the seed: the first n of them are the n that an attack gets."""
    return random.Random(f"attack {seed}").sample(list(items), len(items))


UNRELATED = "base, gold, and as many steps on unrelated text"
WEIGHTS = {
    row.function.__name__: row
    for row in (
        Attack(
            function=relearning,
            kind="weights",
            title="train on forget documents",
            source="Hu et al. 2406.13356; 2510.07626",
            control=UNRELATED,
            companion="unrelated_training",
            trains=True,
        ),
        Attack(
            function=heldout_relearning,
            kind="weights",
            title="train on half of the facts, ask the others",
            source="Deeb & Roger 2410.08827",
            control=UNRELATED,
            companion="unrelated_training",
            trains=True,
            holds_out=True,
        ),
        Attack(
            function=unrelated_training,
            kind="weights",
            title="train on unrelated text",
            source="Doshi & Stickland 2411.12103",
            trains=True,
        ),
        Attack(
            function=round_to_nearest,
            kind="weights",
            title="quantise, round to nearest",
            source="Zhang et al. 2410.16454",
        ),
        Attack(
            function=four_bit_normal_float,
            kind="weights",
            title="quantise to NF4 (bitsandbytes)",
            source="Dettmers et al. 2305.14314",
            package="bitsandbytes",
        ),
        Attack(
            function=magnitude_pruning,
            kind="weights",
            title="prune the smallest weights",
            source="Han et al. 1506.02626",
        ),
        Attack(
            function=weight_noise,
            kind="weights",
            title="add Gaussian noise to weights",
            source="ours",
        ),
        Attack(
            function=direction_ablation,
            kind="weights",
            title="ablate the direction away from base",
            source="Lucki et al. 2409.18025; 2406.11717",
            holds_out=True,
        ),
        Attack(
            function=direction_ablation_retain,
            kind="weights",
            title="ablate the direction forget - retain",
            source="Lucki et al. 2409.18025",
            holds_out=True,
        ),
    )
}
