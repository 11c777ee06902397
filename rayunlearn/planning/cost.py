"""What is left to do and what it will take: the numbers behind `rayunlearn plan`, without Ray."""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.canonical import has_gold
from rayunlearn.config import (
    Calibrate,
    Data,
    Explain,
    Measure,
    Model,
    Retain,
    Stop,
    Train,
    Trial,
    block_numbers,
    names_in,
    rounded_share,
)
from rayunlearn.data.documents import Document
from rayunlearn.errors import require
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.retain import RETAIN
from rayunlearn.planning.lengths import by_longest
from rayunlearn.planning.outcomes import TrialResult
from rayunlearn.planning.planner import Agenda, PlannedTrial
from rayunlearn.ranges import required_inputs
from rayunlearn.registry import arguments_of
from rayunlearn.schema import PAUSED, SECONDS_BY_PART
from rayunlearn.selectors.retain import RETAIN_SELECTORS
from rayunlearn.train.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rayunlearn.data.tokenize import Encoded

# The rule of thumb, used until this run has a finished trial of its own.
# one CPU thread on small matrices, as measured on the embedded synthetic dataset
FLOP_PER_SECOND = 2e10

# share of the speed of a matrix product that a loaded model was measured to reach (SmolLM2-135M,
# one thread of an AMD EPYC, a second worker beside it: 1.5e12 operations of measuring in 27 to 36
# s, of 8.5e10 per second)
REACHED = 0.6

# ours: 40% of the 312e12 that an A100's data sheet gives for bfloat16
GPU_FLOP_PER_SECOND = 1.2e14

GPU_RULE = (
    f"a rule of thumb: 6 x parameters x tokens at {GPU_FLOP_PER_SECOND:.1e} FLOP/s; loading and"
    " measuring come on top"
)

# texts that go through a loaded model at once in a step of 4 + 4; passes of probes have more
TEXTS_OF_A_PASS = 8
# in the key of counts that are kept for a model's folder: they leave out what a pass shares
ONCE = "beginnings once"

# resetting the model, scoring the forget set, the metrics
FIXED_SECONDS = 1.0

# interpreter, torch, transformers and Ray in one worker
FIXED_BYTES = 600 * 2**20

# the driver and a private cluster of Ray beside the workers (measured, shared pages counted once)
DRIVER_BYTES = 1100 * 2**20

# activations and logits of a step of a loaded model (SmolLM2-135M, 4 + 4 documents)
STEP_BYTES = 500 * 2**20

# of the weights in float32: model, pristine copy, gradients, a reference or activations; what the
# optimizer remembers comes on top
COPIES = 4


# what a retain selector reads from a forward pass over the documents it chooses from
FORWARD_INPUTS = frozenset(("embeddings", "token_nll", "token_error"))


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """Seconds per trial and bytes per worker, and in `source` where they come from."""

    seconds: float
    bytes: float
    source: str


@dataclass(frozen=True, kw_only=True)
class LoadedShape:
    """A loaded model as far as its cost goes: parameters of the matrices of each block, those of
    the head, and names with sizes of all tensors.
    """

    blocks: tuple[float, ...]
    head: float
    tensors: tuple[tuple[str, float], ...]

    def trained(self, train: Train) -> dict[int, float]:
        """Parameters that are trained, by block; -1 for those outside the blocks. An adapter's own
        count as none.
        """
        layers, pattern = block_numbers(train.layers), re.compile(train.parameters)
        by_block: dict[int, float] = {}
        for name, size in self.tensors:
            block = block_of_tensor(name)
            if pattern.search(name) and (not layers or block in layers):
                by_block[block] = by_block.get(block, 0.0) + size * (train.adapter == "none")
        # an adapter sits on the matrices of blocks alone
        return {b: n for b, n in by_block.items() if train.adapter == "none" or b >= 0}


@dataclass(frozen=True, kw_only=True)
class WorkloadSize:
    """What a trial's cost depends on. For a model built here a token is a word; a loaded one has
    `labels_per_document` and `shape` too, and its own tokenizer counts; a processor reads
    `shared_per_document` of its tokens with other texts' (a chat template's opening).
    """

    parameters: float
    tokens_per_document: float
    n_forget: int
    n_retain: int = 0
    labels_per_document: float = 0.0
    shared_per_document: float = 0.0
    shape: LoadedShape | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """Trials that differ in seed or in tuned values only."""

    role: str
    method: str
    selector: str
    ratio: float
    group: str
    planned: int
    finished: int


def planned_cells(agenda: Agenda, results: Mapping[str, TrialResult]) -> tuple[PlannedCell, ...]:
    """The plan, one row per cell: known trials and, where their settings still depend on tuning,
    expected ones.

    A trial that serves twice (the tuning winner is a cell of the grid) is counted in both cells.
    """
    counted: dict[tuple[str, str, str, float, str], dict[str, bool]] = {}
    lengths: Counter[tuple[str, str, str, float, str]] = Counter()
    for row in (*agenda.rows, *agenda.expected):
        key = _cell_key(row)
        result = results.get(row.trial_id)
        counted.setdefault(key, {})[row.trial_id] = result is not None and result.status != PAUSED
        if row.role == "tuning":
            lengths[key] = max(lengths[key], agenda.studies.get(row.group, 0))
    return tuple(
        _cell(key, list(done.values()), at_least=lengths[key]) for key, done in counted.items()
    )


def estimate(
    run: Path, agenda: Agenda, *, size_of: Callable[[Trial], WorkloadSize]
) -> CostEstimate:
    """From this run's own finished trials where there are any, else 6 x parameters x tokens at a
    stated speed.

    `size_of` may raise UserError for a model that is not on this machine.
    """
    measured = _measured(run)
    if measured is not None:
        return measured
    trials = [row.trial for row in trainings(agenda) if row.trial.stage == "unlearned"]
    sizes = [size_of(trial) for trial in trials]
    if sizes and all(size.shape is not None for size in sizes):
        return _estimate_of_loaded(trials, sizes)
    seconds = [
        FIXED_SECONDS + 6 * size.parameters * tokens_of_trial(trial, size) / FLOP_PER_SECOND
        for trial, size in zip(trials, sizes, strict=True)
    ]
    seconds.append(flops_of_choosing(trials, sizes) / FLOP_PER_SECOND)
    largest = max(size.parameters for size in sizes)
    rule = (
        f"a rule of thumb: 6 x {largest:.3g} parameters x tokens at {FLOP_PER_SECOND:.0e} FLOP/s"
        f" per worker, + {FIXED_SECONDS:g} s"
    )
    held = COPIES * 4 * largest + max(remembered_bytes(trial, largest) for trial in trials)
    return CostEstimate(seconds=sum(seconds) / len(trials), bytes=FIXED_BYTES + held, source=rule)


def trainings_left(agenda: Agenda, results: Mapping[str, TrialResult]) -> int:
    """Trials of the plan that have not ended, without those that are measured on the way of a
    longer one.
    """
    joined = sum(len(shorter) for _, shorter in by_longest(agenda.ready))
    return agenda.remaining(results) - joined


def remembered_bytes(trial: Trial, n_trained: float) -> int:
    """Bytes of what the trial's optimizer remembers of so many parameters in float32."""
    row = OPTIMIZERS[trial.train.optimizer]
    remembered: int = row.state_bytes(round(n_trained), 4, **arguments_of(trial, row.function))
    return remembered


def trainings(agenda: Agenda) -> list[PlannedTrial]:
    """The plan's trials without those that are measured on the way of a longer one."""
    return [row for row, _ in by_longest((*agenda.rows, *agenda.expected))]


def _estimate_of_loaded(trials: Sequence[Trial], sizes: Sequence[WorkloadSize]) -> CostEstimate:
    """Of loaded models: operations counted, at the speed that this machine was just tried at."""
    seconds, needed = [], []
    for trial, size in zip(trials, sizes, strict=True):
        assert size.shape is not None
        flops = flops_of_loaded(
            trial, size.shape, size, flops_of_measuring(trial, size.shape, size)
        )
        seconds.append(FIXED_SECONDS + flops / flop_per_second())
        trained = sum(size.shape.trained(trial.train).values())
        # model and pristine copy of base and gold, the gradient of what is trained
        copies = 4 if has_gold(trial) else 2
        held = 4 * (copies * size.parameters + trained) + remembered_bytes(trial, trained)
        needed.append(FIXED_BYTES + STEP_BYTES + held)
    seconds.append(flops_of_choosing(trials, sizes) / flop_per_second())
    rule = (
        f"operations of training and measuring, tokens counted, at {flop_per_second():.1e} FLOP/s"
        f" of one thread here (tried just now), + {FIXED_SECONDS:g} s"
    )
    return CostEstimate(seconds=sum(seconds) / len(trials), bytes=max(needed), source=rule)


def flops_of_choosing(trials: Sequence[Trial], sizes: Sequence[WorkloadSize]) -> float:
    """Operations of scoring retain documents for all of the trials, which share the scores: each
    data, model and selector once. Scores of the forget set are in FIXED_SECONDS.

    Per parameter and token: two of a forward pass; with gradients four more of a backward pass,
    and of what is chosen from four more of a forward-mode pass.
    """
    total, counted = 0.0, set()
    for trial, size in zip(trials, sizes, strict=True):
        reads = set(required_inputs(RETAIN_SELECTORS[trial.retain.name].function))
        scorer = (trial.data, trial.model, trial.retain.name)
        if trial.retain.is_full or trial.method.retain == "none" or scorer in counted:
            continue
        counted.add(scorer)
        per_retain = 10 if "forget_alignment" in reads else 2 * bool(reads & FORWARD_INPUTS)
        per_forget = 6 if "forget_alignment" in reads else 2 * ("forget_embeddings" in reads)
        documents = per_retain * size.n_retain + per_forget * size.n_forget
        total += size.parameters * size.tokens_per_document * documents
    return total


def flops_of_loaded(trial: Trial, shape: LoadedShape, size: WorkloadSize, measured: float) -> float:
    """Floating-point operations of a trial: two per parameter and token of what runs forward, two
    of what a gradient passes through, two of what has a gradient of its own.

    What runs begins at the lowest trained block (below it a prefix is kept on disk) and ends at
    `method.layer` for losses of hidden states; the head runs at labels. `measured`: those of
    measuring, done once.
    """
    documents = trial.train.n_presentations(rounded_share(trial.select.ratio, size.n_forget))
    tokens = size.tokens_per_document - size.shared_per_document
    trained = shape.trained(trial.train)
    first = min(trained, default=0)
    total = measured
    for loss in (FORGET[trial.method.forget].function, RETAIN[trial.method.retain].function):
        reads = required_inputs(loss)
        if not reads:
            continue
        in_states = "hidden" in reads
        stop = trial.method.layer + 1 if in_states else len(shape.blocks)
        run = sum(shape.blocks[max(0, first) : stop])
        with_gradient = sum(n for block, n in trained.items() if block < stop)
        heads = 0.0 if in_states else 4 * shape.head * size.labels_per_document
        total += documents * (tokens * (4 * run + 2 * with_gradient) + heads)
    return total


def flops_of_measuring(trial: Trial, shape: LoadedShape, size: WorkloadSize) -> float:
    """Operations of one pass over all sequences of the probes that the trial's metrics read, of its
    looks while it trains, of its calibration and of its explanations; texts that metrics write are
    not in it.

    A calibration is a search of full length between base and the unlearned model (its coarse points
    once for both shares) and one pass over everything at the end of each search. The control that
    only retains is taken to retain enough as it is.
    """
    from rayunlearn.models.interpolation import BISECTION_STEPS, COARSE

    n_steps = trial.train.n_steps(rounded_share(trial.select.ratio, size.n_forget))
    n_looks = math.ceil(n_steps / trial.stop.check_every)
    calibrate = trial.calibrate
    measured, looked, mixed = _asked_tokens(
        trial.data, trial.model, trial.measure, trial.stop, calibrate
    )
    unlearns = trial.method.forget != "none" and calibrate.tau > 0
    n_searches = sum(share > 0 for share in (calibrate.tau, calibrate.beside)) if unlearns else 0
    n_mixtures = len(COARSE) * unlearns + BISECTION_STEPS * n_searches
    tokens, labels = (
        (1 + n_searches) * at_end + n_looks * at_look + n_mixtures * at_mixture
        for at_end, at_look, at_mixture in zip(measured, looked, mixed, strict=True)
    )
    if trial.explain.documents:
        more = explained_tokens(trial.data, trial.model, trial.measure, trial.explain)
        tokens, labels = tokens + more[0], labels + more[1]
    return 2 * (sum(shape.blocks) * tokens + shape.head * labels)


@lru_cache(maxsize=16)
def explained_tokens(
    data: Data, model: Model, measure: Measure, explain: Explain
) -> tuple[int, int]:
    """`_count_explained_tokens`, counted once for a model's folder."""
    from rayunlearn.metrics.table import sources_of
    from rayunlearn.trial.explain import emphasis_metrics

    # a metric of a plugin is no code of this package
    sources = sorted(sources_of(emphasis_metrics(measure.metrics).values()))
    settings = [asdict(data), asdict(measure), asdict(explain), sources, ONCE]
    count = partial(_count_explained_tokens, data, model, measure, explain)
    tokens, labels = _counted_once("explained", data, model, settings, count)
    return tokens, labels


def _counted_once(
    name: str, data: Data, model: Model, settings: Sequence[object], count: Callable[[], Any]
) -> Any:
    """What `count` counts in the tokens of a loaded model, a JSON value, or counted of the same
    texts with the same settings before.
    """
    from rayunlearn.models.folder_answers import answer_of_folder
    from rayunlearn.models.model_files import resolve_model
    from rayunlearn.trial.identity import corpus_of

    question = [name, corpus_of(data, model).digest, *settings]
    return answer_of_folder(resolve_model(model.name), question, count)


def _count_explained_tokens(
    data: Data, model: Model, measure: Measure, explain: Explain
) -> tuple[int, int]:
    """(tokens, labels) that taking questions apart passes, as `explain` says: each with one token
    and with one word of its prompt left out, and asked again in every form of emphasis, of key
    words and of random ones. A question without key words costs less than that.
    """
    from rayunlearn.attribution.emphasis import EMPHASIS_FORMS
    from rayunlearn.keywords.words import words_of
    from rayunlearn.metrics.forward_passes import asked_sequences
    from rayunlearn.metrics.table import sources_of
    from rayunlearn.models.folder import read_tokenizer
    from rayunlearn.models.model_files import resolve_model
    from rayunlearn.trial.explain import emphasis_metrics, first_by_id
    from rayunlearn.trial.identity import corpus_of
    from rayunlearn.trial.probes import probes_of_trial

    corpus, tokenizer = corpus_of(data, model), read_tokenizer(resolve_model(model.name))
    splits = names_in(explain.splits) or corpus.probes
    chosen = {
        (split, document.doc_id)
        for split, part in corpus.probes.items()
        for document in first_by_id(part, explain.documents)
        if split in splits
    }
    sources = sources_of(emphasis_metrics(measure.metrics).values())
    opening = _opening(data, tokenizer)
    tokens = labels = 0
    for probe in probes_of_trial(Trial(data=data, model=model, measure=measure), corpus, tokenizer):
        if (probe.split, probe.doc_id) not in chosen or probe.document is None:
            continue
        prompt = probe.document.prompt
        n_units = len(tokenizer(prompt, add_special_tokens=False).input_ids) + len(words_of(prompt))
        once = _tokens_of([probe.answer], opening)
        emphasised = _probe_tokens([asked_sequences(probe, sources)], opening)
        tokens += (2 + n_units) * once[0] + 2 * len(EMPHASIS_FORMS) * emphasised[0]
        labels += (2 + n_units) * once[1] + 2 * len(EMPHASIS_FORMS) * emphasised[1]
    return tokens, labels


@lru_cache(maxsize=16)
def _asked_tokens(
    data: Data, model: Model, measure: Measure, stop: Stop, calibrate: Calibrate
) -> tuple[tuple[int, int], ...]:
    """`_count_asked_tokens`, counted once for a model's folder."""
    from rayunlearn.metrics.evaluate import chosen_metrics
    from rayunlearn.metrics.table import METRICS, sources_of

    watched = [METRICS[name] for name in (stop.forgetting, stop.utility, calibrate.retention)]
    # a metric of a plugin is no code of this package
    sources = [sorted(sources_of(m)) for m in (chosen_metrics(measure.metrics).values(), watched)]
    settings = [asdict(part) for part in (data, measure, stop, calibrate)]
    count = partial(_count_asked_tokens, data, model, measure, stop, calibrate)
    counted = _counted_once("asked", data, model, [*settings, *sources, ONCE], count)
    return tuple((tokens, labels) for tokens, labels in counted)


def _count_asked_tokens(
    data: Data, model: Model, measure: Measure, stop: Stop, calibrate: Calibrate
) -> tuple[tuple[int, int], ...]:
    """(tokens, labels) of what is measured at a trial's end, of one look, and of one mixture that
    calibration looks at.
    """
    from rayunlearn.metrics.evaluate import chosen_metrics
    from rayunlearn.metrics.forward_passes import asked_sequences
    from rayunlearn.metrics.table import METRICS, sources_of
    from rayunlearn.models.folder import read_tokenizer
    from rayunlearn.models.model_files import resolve_model
    from rayunlearn.trial.identity import corpus_of
    from rayunlearn.trial.monitor import MAX_PROBES, RETENTION
    from rayunlearn.trial.probes import probes_of_trial

    trial = Trial(data=data, model=model, measure=measure, stop=stop)
    tokenizer = read_tokenizer(resolve_model(model.name))
    probes = probes_of_trial(trial, corpus_of(data, model), tokenizer)
    sources = sources_of(chosen_metrics(measure.metrics).values())
    measured = [asked_sequences(probe, sources) for probe in probes]
    series = {("forget", stop.forgetting), (stop.utility_split, stop.utility)}
    series |= {RETENTION} if stop.retention_floor or stop.utility_floor else set()
    looked = [
        asked_sequences(probe, sources_of([METRICS[metric]]))
        for split, metric in series
        for probe in [probe for probe in probes if probe.split == split][:MAX_PROBES]
    ]
    mixed = [
        asked_sequences(probe, sources_of([METRICS[calibrate.retention]]))
        for probe in probes
        if probe.split in (calibrate.split, "forget")
    ]
    opening = _opening(data, tokenizer)
    at_end, at_look, at_mixture = (_probe_tokens(s, opening) for s in (measured, looked, mixed))
    return at_end, at_look, at_mixture


def _probe_tokens(
    by_probe: Sequence[Sequence[tuple[str, "Encoded"]]], opening: tuple[int, ...]
) -> tuple[int, int]:
    """(tokens, labels) that a processor reads of what probes are asked, (kind, sequence) of each:
    what the options of a question begin with is read once.
    """
    from rayunlearn.metrics.forward_passes import NUMBERS

    digits = "".join(NUMBERS)
    whole_texts: list[Encoded] = []
    tokens = labels = 0
    for sequences in by_probe:
        questions: dict[str, list[Encoded]] = {}
        for kind, sequence in sequences:
            # the options of a question are one kind, whatever their number
            questions.setdefault(kind.rstrip(digits), []).append(sequence)
        for first, *others in questions.values():
            whole_texts.append(first)
            for other in others:
                tokens += len(other.ids) - _common_prefix_length(first.ids, other.ids)
                labels += len(other.ids) - other.start
    read, predicted = _tokens_of(whole_texts, opening)
    return tokens + read, labels + predicted


def _common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with alike, 0 where they are too few to be read once."""
    from rayunlearn.models.packed_layout import LEAST_SHARED

    pairs = zip(first, second, strict=False)
    n_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return n_common if n_common >= LEAST_SHARED else 0


def _tokens_of(sequences: Sequence["Encoded"], opening: tuple[int, ...]) -> tuple[int, int]:
    """(tokens, labels) that a processor reads of the sequences."""
    tokens = sum(len(s.ids) for s in sequences) - _shared_tokens(sequences, opening)
    return tokens, sum(len(s.ids) - s.start for s in sequences)


def _shared_tokens(sequences: Sequence["Encoded"], opening: tuple[int, ...]) -> int:
    """Tokens of the sequences that a processor does not read, since a pass reads what all of its
    texts begin with once (`models.packed_layout`).
    """
    size = len(opening)
    opened = sum(s.ids[:size] == opening and s.start > size for s in sequences)
    return round(opened * size * (1 - 1 / TEXTS_OF_A_PASS))


def _opening(data: Data, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """What texts in the data's template begin with alike, () where it is too short to be shared."""
    from rayunlearn.data.tokenize import opening_ids
    from rayunlearn.models.packed_layout import LEAST_SHARED

    opening = opening_ids(tokenizer) if data.template == "chat" else ()
    return opening if len(opening) >= LEAST_SHARED else ()


@lru_cache(maxsize=1)
def flop_per_second() -> float:
    """What one thread of this machine does in float32, tried on matrices for a tenth of a second,
    times what of it a trial was measured to reach.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    a, b = np.ones((256, 576), np.float32), np.ones((576, 1536), np.float32)
    best = math.inf
    # of several threads the clock would see one
    with threadpool_limits(1):
        for _ in range(20):
            started = time.thread_time()
            a @ b
            best = min(best, time.thread_time() - started)
    return REACHED * 2 * a.size * b.shape[1] / max(best, 1e-9)


def gpu_hours(agenda: Agenda, n_left: int, *, size_of: Callable[[Trial], WorkloadSize]) -> float:
    """Hours of one GPU that training the `left` trials of a plan takes by `GPU_RULE`, each as the
    mean of those whose settings are known.
    """
    trials = {
        row.trial_id: row.trial for row in trainings(agenda) if row.trial.stage == "unlearned"
    }.values()
    sizes = [(trial, size_of(trial)) for trial in trials]
    seconds = [
        6 * size.parameters * tokens_of_trial(trial, size) / GPU_FLOP_PER_SECOND
        for trial, size in sizes
    ]
    return n_left * sum(seconds) / max(1, len(seconds)) / 3600


def tokens_of_trial(trial: Trial, size: WorkloadSize) -> float:
    """Tokens of all of a trial's forget and retain batches."""
    documents = trial.train.n_presentations(rounded_share(trial.select.ratio, size.n_forget))
    sides = (trial.method.forget != "none") + (trial.method.retain != "none")
    return documents * sides * min(size.tokens_per_document, trial.data.max_tokens)


def size_of(trial: Trial) -> WorkloadSize:
    """The size of a trial's model and documents, without loading weights."""
    return _size_of(trial.data, trial.model)


@lru_cache(maxsize=64)
def _size_of(data: Data, model: Model) -> WorkloadSize:
    from rayunlearn.trial.identity import corpus_of

    corpus = corpus_of(data, model)
    forget = corpus.forget
    if model.name != "scratch" and Path(model.name).is_dir():
        return replace(_size_of_loaded(data, model, forget), n_retain=len(corpus.retain))
    words = sum(len(f"{document.prompt} {document.answer}".split()) for document in forget)
    return WorkloadSize(
        parameters=parameters_of(model),
        tokens_per_document=words / len(forget),
        n_forget=len(forget),
        n_retain=len(corpus.retain),
    )


def _size_of_loaded(data: Data, model: Model, forget: Sequence[Document]) -> WorkloadSize:
    settings = [data.template, data.max_tokens, ONCE]
    count = partial(_count_document_tokens, data, model, forget)
    tokens, labels, shared = _counted_once("documents", data, model, settings, count)
    return WorkloadSize(
        parameters=parameters_of(model),
        tokens_per_document=tokens / len(forget),
        n_forget=len(forget),
        labels_per_document=labels / len(forget),
        shared_per_document=shared / len(forget),
        shape=shape_of_loaded(Path(model.name)),
    )


def _count_document_tokens(
    data: Data, model: Model, forget: Sequence[Document]
) -> tuple[int, int, int]:
    """(tokens, labels, tokens that a processor shares) of the forget documents."""
    from rayunlearn.data.tokenize import encode_documents
    from rayunlearn.models.folder import read_tokenizer
    from rayunlearn.models.model_files import resolve_model

    tokenizer = read_tokenizer(resolve_model(model.name))
    texts = encode_documents(forget, tokenizer, data.template, data.max_tokens)
    return *_tokens_of(texts, ()), _shared_tokens(texts, _opening(data, tokenizer))


def shape_of_loaded(folder: Path) -> LoadedShape:
    """From the headers of its safetensors files; an embedding serves as the head where there is no
    other.
    """
    tensors = [t for file in sorted(folder.glob("*.safetensors")) for t in _tensors(file)]
    matrices = [(name, math.prod(s)) for name, s in tensors if len(s) >= 2]
    n_blocks = 1 + max((block_of_tensor(name) for name, _ in tensors), default=-1)
    outside = [size for name, size in matrices if block_of_tensor(name) < 0]
    return LoadedShape(
        blocks=tuple(
            float(sum(size for name, size in matrices if block_of_tensor(name) == block))
            for block in range(n_blocks)
        ),
        head=float(max(outside, default=0)),
        tensors=tuple((name, float(math.prod(s))) for name, s in tensors),
    )


def block_of_tensor(name: str) -> int:
    """The number of the block that a tensor's name says (`model.layers.7.mlp...`), -1 for none."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else -1


def parameters_of(model: Model) -> float:
    """Parameters of a model built here (from its shape, with 2,000 words) or in a folder (from its
    safetensors headers).

    Raises UserError for a model that is not on this machine.
    """
    if model.name == "scratch":
        from rayunlearn.models.scratch import SHAPES

        shape = SHAPES[model.size]
        return (
            shape.blocks * (4 * shape.width**2 + 3 * shape.width * shape.inner) + 2000 * shape.width
        )
    files = sorted(Path(model.name).glob("*.safetensors"))
    require(
        bool(files),
        "time and memory can be estimated for a model folder on this machine only",
        model.name,
    )
    return float(sum(_elements(file) for file in files))


def _elements(file: Path) -> int:
    return sum(math.prod(shape) for _, shape in _tensors(file))


def _tensors(file: Path) -> list[tuple[str, list[int]]]:
    """Names and shapes of a safetensors file, from its header. (Format: 8 bytes of length, then
    JSON.)
    """
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return [(name, tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"]


def _cell_key(row: PlannedTrial) -> tuple[str, str, str, float, str]:
    trial = row.trial
    if trial.stage != "unlearned":
        return (row.role, "", "", math.nan, f"data.name={trial.data.name}")
    forget = "retain only" if trial.method.forget == "none" else trial.method.forget
    group = ", ".join(
        f"{name}={value}"
        for name, value in json.loads(row.group).items()
        if not name.startswith(("method.", "select.", "retain."))
    )
    parts = [group, *_retain_words(trial.retain)]
    return (
        row.role,
        f"{forget} + {trial.method.retain}",
        trial.select.name,
        trial.select.ratio,
        ", ".join(filter(None, parts)),
    )


def _retain_words(retain: Retain) -> list[str]:
    """What of the retain set trains, where not all of it does."""
    if retain.is_full:
        return []
    general = [f"retain.general={retain.general:g}"] if retain.general else []
    return [f"retain.name={retain.name}", f"retain.ratio={retain.ratio:g}", *general]


def _cell(key: tuple[str, str, str, float, str], done: list[bool], *, at_least: int) -> PlannedCell:
    role, method, selector, ratio, group = key
    return PlannedCell(
        role=role,
        method=method,
        selector=selector,
        ratio=ratio,
        group=group,
        planned=max(len(done), at_least),
        finished=sum(done),
    )


def _measured(run: Path) -> CostEstimate | None:
    import polars as pl

    from rayunlearn.storage.run import finished_ids, open_run

    if not finished_ids(run):
        return None
    seconds = pl.sum_horizontal(SECONDS_BY_PART)
    trials = open_run(run).trials
    trained = trials.filter((pl.col("stage") == "unlearned") & (pl.col("status") != "failed"))
    # of a run from before there were such, none was measured on another's way
    if "measured_within" in trials.collect_schema():
        trained = trained.filter(pl.col("measured_within").is_null())
    row = (
        trained.select(
            seconds.mean().alias("seconds"),
            pl.col("peak_memory_bytes").max().alias("bytes"),
            pl.len().alias("n"),
        )
        .collect()
        .row(0, named=True)
    )
    if not row["n"] or row["seconds"] is None:
        return None
    return CostEstimate(
        seconds=row["seconds"],
        bytes=float(row["bytes"] or FIXED_BYTES),
        source=f"the mean of this run's {row['n']} finished trials",
    )
