"""What a trial needs of a GPU, said before any runs: one step of an outline of its model, corrected
by what finished trials took.

An outline has shapes and no numbers (torch's meta device), so a model of any size is measured in
seconds without its weights.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from rayunlearn.config import Train, Trial, block_numbers, digest, flatten, from_flat
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import encode_documents
from rayunlearn.errors import UserError
from rayunlearn.lazy import functional, torch
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.loss_inputs import paired_response_kinds, uses_documents
from rayunlearn.methods.retain import RETAIN
from rayunlearn.models.activation_checkpointing import checkpointed_blocks
from rayunlearn.models.device_memory import StepMemory, step_memory
from rayunlearn.models.folder import read_tokenizer
from rayunlearn.models.forward import TOKENS_PER_PASS, block_output
from rayunlearn.models.logits import FinalStates, final_states
from rayunlearn.models.model_files import resolve_model
from rayunlearn.models.outline import meta_model
from rayunlearn.models.reference import DISTRIBUTION_BYTES
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import arguments_of, check_trial
from rayunlearn.schema import column_names
from rayunlearn.storage.code_identity import package_digest, version_of
from rayunlearn.storage.run import finished_ids, open_run
from rayunlearn.storage.user_cache import answer_once
from rayunlearn.train.adapters import ADAPTERS, inject_adapter, linear_modules
from rayunlearn.train.device import FLOAT32
from rayunlearn.train.loop import choose_parameters
from rayunlearn.train.optimizers import OPTIMIZERS
from rayunlearn.train.stored_weights import NF4, NF4_BYTES, frozen_matrices
from rayunlearn.trial.identity import corpus_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """Bytes that a plan's largest trial holds on a GPU at its peak, which trial that is, and
    where the number comes from.
    """

    peak: int
    trial: str
    source: str


def gpu_share(memory: GpuMemory, available: int) -> tuple[float, str]:
    """The share of a GPU of `there` bytes that a trial takes, and the sentence that says so. Raises
    UserError where one is too small.
    """
    from rayunlearn.models.device_memory import share_of

    share = share_of(memory.peak, available, f"a trial ({memory.trial})")
    sentence = f"each trial takes {share:g} of a GPU of {available / 2**30:.1f} GiB"
    return share, f"{sentence}: {format_gpu_memory(memory)}"


def format_gpu_memory(memory: GpuMemory) -> str:
    """What the largest trial needs of a GPU."""
    return f"{memory.peak / 2**30:.2f} GiB for {memory.trial} (from {memory.source})"


# name of our function for a block of experts, among those of the library
EXPERTS = "rayunlearn_shapes"

# texts of most characters, among which the one of most tokens is looked for
LONGEST = 8
FLOAT, HALF = 4, 2

# of a model folder: configuration and tokenizer, no weights
TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def estimate_gpu_memory(trials: Iterable[Trial], run: Path, cache: Path | None = None) -> GpuMemory:
    """The room of the largest trial: estimated, and multiplied by the largest peak / estimate of
    this run's finished trials.

    Only trials that ran on a GPU count for that. `Room.peak` is bytes without the context and
    without a margin. Estimates are written to the folder `cache`, where one is named, and read
    there by the next process.
    """
    cores = {trial: _core(trial) for trial in trials}
    bytes_by_core = {core: cached_peak_bytes(core, cache) for core in dict.fromkeys(cores.values())}
    needed = {trial: bytes_by_core[core] for trial, core in cores.items()}
    largest_trial = max(needed, key=lambda trial: needed[trial])
    factor, n_measured = _correction(run, cache)
    trained = (
        f"{largest_trial.method.forget} + {largest_trial.method.retain}"
        if largest_trial.stage == "unlearned"
        else largest_trial.stage
    )
    label = (
        f"{trained}, model {largest_trial.model.name}, batch {largest_trial.train.batch_size} in"
        f" {largest_trial.train.accumulation}"
    )
    source = (
        f"one step without weights, x {factor:.2f} as {n_measured} finished trials took"
        if n_measured
        else "one step without weights"
    )
    return GpuMemory(peak=round(needed[largest_trial] * factor), trial=label, source=source)


def cached_peak_bytes(trial: Trial, cache: Path | None) -> int:
    """`peak_bytes`, read from `cache` where an earlier process wrote it: to measure it takes
    seconds, most of them for loading libraries. Without a cache it is measured.
    """
    if cache is None:
        return peak_bytes(trial)
    file = cache / f"{_core_digest(trial)}.json"
    return int(answer_once(file, partial(peak_bytes, trial)))


def _core_digest(trial: Trial) -> str:
    """What decides the estimate: settings, texts, the model's shape and tokenizer, code."""
    shape: list[object] = []
    if trial.model.name != "scratch":
        folder = resolve_model(trial.model.name)
        files = [file for file in sorted(folder.glob("*")) if file.suffix in TEXT_SUFFIXES]
        shape = [[file.name, sha256(file.read_bytes()).hexdigest()] for file in files]
    libraries = [version_of(name) for name in ("torch", "transformers", "peft")]
    settings = flatten(trial)
    return digest(
        [settings, corpus_of(trial.data, trial.model).digest, shape, libraries, package_digest()]
    )


@lru_cache(maxsize=256)
def peak_bytes(trial: Trial) -> int:
    """Peak bytes on a GPU: weights, and the larger of a training step and of measuring.

    Every text of the batch is taken to be as long as the longest. Activations are those of float32,
    more than bfloat16's; where `train.precision` may lower it, lowered weights are added. What
    the optimizer needs for a moment is not in it: `device_memory.MARGIN` is for that.
    """
    model, (tokens, labels) = _meta_model(trial), _longest(trial)
    weights = FLOAT * sum(p.numel() for p in model.parameters())
    # logits and their log-softmax
    scored = 2 * FLOAT * model.config.vocab_size * (TOKENS_PER_PASS * labels // tokens)
    if trial.stage != "unlearned":
        return weights + scored
    trained = _trained(trial, model)
    saved = _stored(trial, model, trained)
    size = trial.train.batch_size // trial.train.accumulation
    checkpointed = checkpointed_blocks(model) if trial.train.checkpoint_activations else None
    try:
        with checkpointed or nullcontext():
            step = _step(trial, model, trained, (size, tokens, labels))
    # of the library, from a model whose pass looks into tensors that hold no numbers
    except (RuntimeError, ValueError) as problem:
        raise UserError(
            f"what {trial.model.name} ({type(model).__name__}) needs of a GPU cannot be estimated"
            f" without its weights, so --gpus-per-trial must be said: {problem}"
        ) from problem
    plain = trial.train.weights == FLOAT32
    lowered = weights // 2 if trial.train.precision != FLOAT32 and plain else 0
    while_training = (
        step.weights - saved + step.gradients + step.moments + step.activations + lowered
    )
    # weights are float32 again when they are measured, and adapters are among them
    afterwards = (step.weights if plain else weights) + scored
    return _frozen_reference_bytes(trial, model, labels) + max(while_training, afterwards)


def _stored(trial: Trial, model: PreTrainedModel, trained: Sequence[torch.nn.Parameter]) -> int:
    """Store the outline's weights as the trial does while it trains; the bytes that four bits save
    beside that.
    """
    if trial.train.weights == FLOAT32:
        return 0
    adapters = {id(p) for p in trained} if trial.train.adapter != "none" else set()
    for parameter in model.parameters():
        if id(parameter) not in adapters:
            parameter.data = parameter.data.to(torch.bfloat16)
    if trial.train.weights != NF4:
        return 0
    sizes = [module.weight.numel() for module in frozen_matrices(model)]
    # the largest is unpacked for its product, in float32 and then in its type
    return round(sum(sizes) * (HALF - NF4_BYTES)) - (FLOAT + HALF) * max(sizes, default=0)


def _remembered_bytes(trial: Trial, parameter: torch.nn.Parameter) -> int:
    """Bytes of what the optimizer remembers of a parameter, its float32 copy among them."""
    n, size = parameter.numel(), parameter.element_size()
    copied = size != FLOAT and trial.train.master_weights
    row = OPTIMIZERS[trial.train.optimizer]
    remembered: int = row.state_bytes(
        n, FLOAT if copied else size, **arguments_of(trial, row.function)
    )
    # the copy, and the gradient in its type
    return remembered + 2 * FLOAT * n * copied


def _core(trial: Trial) -> Trial:
    """The trial with only the settings that memory depends on, so that a sweep over others is
    measured once.
    """
    if trial.stage != "unlearned":
        return Trial(stage="base", data=trial.data, model=trial.model)
    names = (
        *("batch_size", "accumulation", "parameters", "layers", "adapter", "precision"),
        *("optimizer", "weights", "master_weights", "checkpoint_activations"),
    )
    train = Train(**{name: getattr(trial.train, name) for name in names})
    method = replace(trial.method, forget_weight=1.0, retain_weight=1.0, wrappers="")
    # what the adapter and the optimizer are built with; no other option changes a size
    prefixes = (f"{trial.train.adapter}.", f"{trial.train.optimizer}.")
    options = tuple((name, value) for name, value in trial.options if name.startswith(prefixes))
    return Trial(data=trial.data, model=trial.model, method=method, train=train, options=options)


def _meta_model(trial: Trial) -> PreTrainedModel:
    """The trial's model without numbers."""
    model = meta_model(trial.model)
    if trial.model.name != "scratch":
        # loaded late: transformers is heavy, and a plan without a GPU needs none of it
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(EXPERTS, _shapes_of_experts)
        model.config._experts_implementation = EXPERTS
    return model


def _shapes_of_experts(
    experts: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What a block of experts keeps: every token's row for each of its k experts, through matrices
    of the shape of one of them. hidden (N, D), top_k_index, top_k_weights (N, k).

    The library's grouped kernel takes bfloat16 alone where tensors hold no numbers, and its loop
    over experts looks into the tensors.
    """
    n_tokens, k = top_k_index.shape
    first = experts.gate_up_proj if experts.has_gate else experts.up_proj
    weights = [w[0] if experts.is_transposed else w[0].T for w in (first, experts.down_proj)]
    inner = hidden.repeat_interleave(k, dim=0) @ weights[0]
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    out = (inner @ weights[1]) * top_k_weights.reshape(-1, 1)
    return out.view(n_tokens, k, -1).sum(1)


def _trained(trial: Trial, model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """What the trial trains of the outline; adapters are put in."""
    pattern, layers = trial.train.parameters, block_numbers(trial.train.layers)
    function = ADAPTERS[trial.train.adapter].function
    config = function(linear_modules(model, pattern, layers), **arguments_of(trial, function))
    if config is not None:
        inject_adapter(model, config, without_numbers=True)
    return choose_parameters(model, pattern if config is None else r"\.lora_", layers)


def _longest(trial: Trial) -> tuple[int, int]:
    """Tokens and labels of the longest text. For a model built here a token is
    taken to be a word.
    """
    corpus = corpus_of(trial.data, trial.model)
    texts = sorted((*corpus.forget, *corpus.retain), key=lambda d: len(d.prompt) + len(d.answer))[
        -LONGEST:
    ]
    if trial.model.name == "scratch":
        sizes = [_words(document, trial) for document in texts]
    else:
        tokenizer = read_tokenizer(resolve_model(trial.model.name))
        encoded = encode_documents(texts, tokenizer, trial.data.template, trial.data.max_tokens)
        sizes = [(len(s.ids), len(s.ids) - s.start) for s in encoded]
    return max(sizes, default=(trial.data.max_tokens, trial.data.max_tokens))


def _words(document: Document, trial: Trial) -> tuple[int, int]:
    answer = len(document.answer.split()) + 1
    prompt = (
        len(trial.data.template.replace("{prompt}", document.prompt).split())
        if document.prompt
        else 0
    )
    total = max(2, min(trial.data.max_tokens, prompt + answer))
    return total, max(1, min(answer, total - 1))


def _step(
    trial: Trial,
    model: PreTrainedModel,
    trained: Sequence[torch.nn.Parameter],
    shape: tuple[int, int, int],
) -> StepMemory:
    """What a step keeps, whose passes each take `size` texts of `tokens` tokens, `labels` of them
    labelled. Passes of one kind keep equally much, so one of each is measured.
    """
    size, tokens, labels = shape
    losses = {
        "states": partial(_states_loss, model, size, tokens, layer=trial.method.layer),
        "logits": partial(_likelihood_loss, model, size, tokens, labels=labels),
    }
    remembered = partial(_remembered_bytes, trial)
    step = step_memory(model, trained, lambda: torch.zeros((), device="meta"), remembered)
    activations = sum(
        n_passes * step_memory(model, trained, losses[kind], remembered).activations
        for kind, n_passes in _passes(trial).items()
    )
    return replace(step, activations=activations)


def _passes(trial: Trial) -> Counter[str]:
    """How many passes a step takes whose loss reads hidden states, and how many whose loss reads
    logits: one per text that it looks at.
    """
    passes: Counter[str] = Counter()
    for loss in (FORGET[trial.method.forget].function, RETAIN[trial.method.retain].function):
        inputs = required_inputs(loss)
        n_texts = uses_documents(loss) + len(paired_response_kinds(loss)) if inputs else 0
        passes["states" if "hidden" in inputs else "logits"] += n_texts
    return +passes


def _likelihood_loss(model: PreTrainedModel, size: int, tokens: int, *, labels: int) -> Tensor:
    places = torch.arange(size * tokens, device="meta").view(size, tokens)[:, -labels:].flatten()
    logits = _final_states(model, size, tokens).logits_at(places)
    return functional.cross_entropy(
        logits, torch.zeros(len(logits), dtype=torch.long, device="meta")
    )


def _states_loss(model: PreTrainedModel, size: int, tokens: int, *, layer: int) -> Tensor:
    """The pass ends with the block `layer`, as a trial's does."""
    with block_output(model, layer, ends=True) as outputs:
        _final_states(model, size, tokens)
    return outputs[0].float().square().mean()


def _final_states(model: PreTrainedModel, size: int, tokens: int) -> FinalStates:
    """The last block's output for a batch without numbers; a ready mask, because the library would
    look into the batch for one.
    """
    ids = torch.zeros(size, tokens, dtype=torch.long, device="meta")
    mask = torch.ones(size, 1, tokens, tokens, dtype=torch.bool, device="meta").tril()
    # a family that counts positions by its mask (OPT) would count along the wrong side of this one
    arguments = {"position_ids": torch.arange(tokens, device="meta").expand(size, -1)}
    parameters = inspect.signature(model.base_model.forward).parameters
    named = {name: value for name, value in arguments.items() if name in parameters}
    return final_states(model, {"input_ids": ids, "attention_mask": mask, **named})


def _frozen_reference_bytes(trial: Trial, model: PreTrainedModel, labels: int) -> int:
    """Bytes of the frozen copy of the model where whole distributions are too large to keep on
    disk.
    """
    corpus, method = corpus_of(trial.data, trial.model), trial.method
    n_retained = sum(trial.retain.sizes(len(corpus.retain)))
    sides = (
        (FORGET[method.forget].function, len(corpus.forget)),
        (RETAIN[method.retain].function, n_retained),
    )
    largest = max(
        (
            n_documents
            for loss, n_documents in sides
            if "reference_log_probs" in required_inputs(loss)
        ),
        default=0,
    )
    over = FLOAT * model.config.vocab_size * labels * largest > DISTRIBUTION_BYTES
    return FLOAT * sum(p.numel() for p in model.parameters()) if over else 0


def _correction(run: Path, cache: Path | None) -> tuple[float, int]:
    """The largest peak / estimate of the run's finished trials that trained on a GPU, and their
    number; (1, 0) without any.
    """
    if not finished_ids(run):
        return 1.0, 0
    on_gpu = (
        ~pl.col("hardware").str.contains(" CPU, ")
        & (pl.col("stage") == "unlearned")
        & pl.col("peak_memory_bytes").is_not_null()
    )
    rows = (
        open_run(run)
        .trials.filter(on_gpu & pl.col("status").is_in(["complete", "collapsed"]))
        .collect()
        .to_dicts()
    )
    ratios = []
    for row in rows:
        try:
            settings = {
                name: value for name, value in row.items() if name not in column_names("trials")
            }
            trial = check_trial(from_flat(settings))
            ratios.append(row["peak_memory_bytes"] / cached_peak_bytes(_core(trial), cache))
        # a row of older settings, or data that is gone: it says nothing of what is planned now
        except UserError:
            continue
    return max(ratios, default=1.0), len(ratios)
