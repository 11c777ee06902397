"""What a trial is: one frozen value. Every setting has one dotted name, used from the command line
to Parquet.

`select.ratio` is a field of a section; `npo.beta` is a keyword argument of the function `npo` and
lives in `Trial.options`, because layer 0 does not know the method tables.
`rayunlearn.registry.check_trial` holds options against the signatures on the driver, before
anything is scheduled.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from rayunlearn.errors import UserError, require, require_no_login, unknown_name

Value = str | int | float | bool

SYNTHETIC_DATASETS = ("domain", "people")
# loaded by `data.benchmarks.LOADERS`, one each
BENCHMARKS = (
    "biology",
    "blur",
    "known",
    "knowundo",
    "lume",
    "mmlu",
    "mmlu-domain",
    "muse-books",
    "muse-news",
    "rwku",
    "tofu",
    "wmdp-bio",
    "wmdp-cyber",
)
# of these the model is asked first, and its corpus is what it knows
ASKED_FIRST = ("known", "mmlu-domain")
# of these the product ships the files, so that they need no path
SHIPPED = ("known",)
UNITS = ("steps", "epochs", "presentations")
# after the warm-up
SCHEDULES = ("constant", "linear", "cosine")
# what a trial ends with; `schema.STAGES` are those at which something is measured
TRIAL_STAGES = ("unlearned", "base", "gold")
OBJECTIVE_STAGES = ("unlearned", "calibrated", "attacked")
# what the forgetting metric should come to
TARGETS = ("gold", "chance", "none")
# select.ratio of the full forget set
FULL_RATIO = 1.0
# settings that are repeated over, never compared
SEED_SETTINGS = ("select.seed", "retain.seed", "train.seed")
SIZES = ("tiny", "small")
TEXTS = ("original", "keywords_only", "non_keywords", "random_words", "shuffled_keywords")
# controls: what is trained on in the place of the coreset (trial/substitutes.py)
SUBSTITUTES = ("other_documents", "shuffled_answers", "random_text")
STEERING_UNITS = ("absolute", "activation")
PREFERRED = ("refusal", "alternate", "wrong")
PRECISIONS = ("auto", "float32", "bfloat16", "fastest")
TEACH_PRECISIONS = ("float32", "bfloat16", "fastest")
# train.weights
STORAGES = ("float32", "bfloat16", "nf4")
# stop.keep
KEPT_WEIGHTS = ("last", "best")
# the differences of numbers up to 20 are that many (data/arithmetic.py)
MOST_ARITHMETIC = 190
# Settings that change no number of a trial, so they make no other one: a training that goes on from
# a checkpoint ends with the same bits (tests/train/test_checkpoint.py), however often one is
# written, and who may read the documents decides nothing about them.
RESULT_NEUTRAL = ("train.checkpoint_every", "data.private")
# Settings that came later, and the value at which a trial is what it was before them: its id, and
# that of a model trained here, leaves them out.
LATER_SETTINGS: Mapping[str, "Value"] = {
    "train.optimizer": "adamw",
    "train.weights": "float32",
    "train.master_weights": True,
    "train.checkpoint_activations": False,
    "train.compile": False,
    "model.teach_batch_size": 0,
    "model.teach_precision": "float32",
    "data.probes": "",
    "measure.shots": 2,
    "method.steering_unit": "absolute",
    "method.forget_weight": 1.0,
    "explain.diagnostics": False,
    "explain.g_effect": False,
    "explain.splits": "",
    "measure.limit_probes": "",
    "measure.attack": "none",
    "stop.target": "none",
    "measure.keep_texts": 1000,
    "judge.answers": "",
    "data.linked": False,
    "retain.name": "random",
    "retain.ratio": 1.0,
    "retain.seed": 0,
    "retain.general": 0.0,
    "retain.file": "",
    "retain.extractor": "tfidf",
    "measure.harness": "",
    "measure.harness_include": "",
    "measure.harness_limit": 0,
    "harness.task": "",
    "harness.include": "",
    "harness.limit": 0,
    "harness.shots": "",
}
# lists separated by commas, which `--set NAME+=VALUE` adds to; `track` is the experiment's
LIST_SETTINGS = (
    "data.columns",
    "data.options",
    "data.probes",
    "explain.splits",
    "measure.harness",
    "measure.limit_probes",
    "measure.metrics",
    "method.wrappers",
    "token.words",
    "track",
    "train.layers",
)
# the rate for a model built here, and how a loaded one is trained before it unlearns
SCRATCH_LEARNING_RATE = 2e-3
LOADED_TEACHING = {"teach_epochs": 5, "teach_learning_rate": 1e-3, "teach_batch_size": 8}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which documents: a synthetic dataset (`domain`, `people`), a benchmark of docs/benchmarks.md
    or `files` of your own.

    For a benchmark, `path` is its folder or Hub name and `options` are its loader's settings:
    `size=05`; the file settings below are not read. For `files`, `path` is a directory, one file or
    a Hub name, and `forget`, `retain`, `probe_forget` and `probe_retain` name a file stem in that
    directory (or a Hub configuration). Empty probes: the training documents are also what is asked.
    `holdout` names documents like the forget set's that no model was trained on: membership metrics
    compare with them. `columns` maps our names to theirs: `prompt=question,answer=answer`.

    `probes` names further sets that are asked and never trained on, whatever the data:
    `near=near.jsonl,far=far.jsonl`, each a split of that name. A source may also be a table of
    facts that the product ships, or a slice of it, `untouched=known:continents`, its passages of
    plain English, `general=general_text`, and with `files` a split of `path`.

    `arithmetic`: so many sums, differences and products are asked besides, on split `arithmetic`,
    whatever the data: what a model could and nobody asked it to forget.

    `linked` (synthetic datasets): base also learns a second name of every entity, which other
    entity is linked to it, and the questions that go by these, so that the attacks aliases and
    multi_hop ask what base can answer. The forget set stays as it is.

    `private`: the documents are not for others. What holds their text, or a text that a model
    wrote, stays in the run's folder and goes into no report and no evaluation.
    """

    name: str = "domain"
    size: str = "tiny"
    redundancy: int = 20
    seed: int = 0
    path: str = ""
    forget: str = "forget"
    retain: str = "retain"
    probe_forget: str = ""
    probe_retain: str = ""
    holdout: str = ""
    columns: str = ""
    options: str = ""
    limit_retain: int = 1_000_000
    template: str = "Question: {prompt}\nAnswer:"
    max_tokens: int = 256
    probes: str = ""
    arithmetic: int = 0
    linked: bool = False
    private: bool = False

    def __post_init__(self) -> None:
        if self.name not in (*SYNTHETIC_DATASETS, *BENCHMARKS, "files"):
            raise unknown_name("data.name", self.name, (*SYNTHETIC_DATASETS, *BENCHMARKS, "files"))
        if self.size not in SIZES:
            raise unknown_name("data.size", self.size, SIZES)
        require(self.redundancy >= 1, "data.redundancy must be >= 1", self.redundancy)
        named = (
            f"data.path must name a directory, file or Hub data set when data.name is {self.name!r}"
        )
        has_path = self.name in (*SYNTHETIC_DATASETS, *SHIPPED) or bool(self.path)
        require(has_path, named, self.path)
        require_no_login("data.path", self.path)
        require(
            self.name in BENCHMARKS or not self.options,
            "data.options must be '' when data.name is no benchmark",
            self.options,
        )
        require(
            "{prompt}" in self.template or self.template == "chat",
            "data.template must contain {prompt} or be 'chat'",
            self.template,
        )
        require(self.max_tokens >= 8, "data.max_tokens must be >= 8", self.max_tokens)
        require(
            self.name in SYNTHETIC_DATASETS or not self.linked,
            "data.linked must be false when data.name is no synthetic dataset",
            self.linked,
        )
        require(
            0 <= self.arithmetic <= MOST_ARITHMETIC,
            f"data.arithmetic must be from 0 to {MOST_ARITHMETIC}",
            self.arithmetic,
        )
        require(self.limit_retain >= 1, "data.limit_retain must be >= 1", self.limit_retain)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model: `scratch` (built here at `size`) or a local directory or Hub name, safetensors
    only.

    `teach`: train it on the corpus first (base: forget + retain; gold: retain alone), for so many
    epochs, at that peak rate, in batches of so many documents; products are computed in
    `teach_precision` (fastest: as in `Train`; training.json says what it was), weights are float32
    always. 0 stands for what fits: 35 or 20 epochs (by size)
    at 2e-3 in batches of 16 for a model built here, 5 epochs at 1e-3 in batches of 8 for a loaded
    one (found on 135 million parameters; for a billion and more papers take 1e-5 to 2e-5). With
    `teach` off the model is taken as it is, `gold` may name a model that never saw the forget set,
    and `unlearned` one that was unlearned elsewhere: stage unlearned is then those weights, and
    nothing is trained.
    """

    name: str = "scratch"
    size: str = "tiny"
    teach: bool = True
    teach_epochs: int = 0
    teach_learning_rate: float = 0.0
    teach_batch_size: int = 0
    teach_precision: str = "float32"
    gold: str = ""
    unlearned: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise unknown_name("model.size", self.size, SIZES)
        require(
            not (self.teach and self.unlearned),
            "model.unlearned must be '' when model.teach is true",
            self.unlearned,
        )
        require_no_login("model.name", self.name)
        require_no_login("model.gold", self.gold)
        require(
            self.teach or self.name != "scratch",
            "model.teach must be true when model.name is 'scratch'",
            self.teach,
        )
        require(self.teach_epochs >= 0, "model.teach_epochs must be >= 0", self.teach_epochs)
        require(
            0 <= self.teach_learning_rate < math.inf,
            "model.teach_learning_rate must be >= 0 and finite",
            self.teach_learning_rate,
        )
        require(
            self.teach_batch_size >= 0, "model.teach_batch_size must be >= 0", self.teach_batch_size
        )
        if self.teach_precision not in TEACH_PRECISIONS:
            raise unknown_name("model.teach_precision", self.teach_precision, TEACH_PRECISIONS)


def with_teaching(model: Model) -> Model:
    """The model with what its zeros of `teach_*` stand for: all of them where a loaded model is
    trained first, else the rate (epochs and batches are the size's own, `train.teach.RECIPE`).
    """
    is_loaded = model.teach and model.name != "scratch"
    fitting = LOADED_TEACHING if is_loaded else {"teach_learning_rate": SCRATCH_LEARNING_RATE}
    chosen: dict[str, Any] = {
        name: value for name, value in fitting.items() if not getattr(model, name)
    }
    return replace(model, **chosen) if chosen else model


@dataclass(frozen=True, kw_only=True)
class Select:
    """Which part of the forget set is unlearned, and in which words: ratio r keeps max(1, round(r
    n)) documents.

    `stratified`: topics, where documents have them, share the coreset out in proportion. `text`:
    the whole documents, their keywords alone (in order or shuffled), the other words, or the same
    number of random words. `extractor` finds the keywords, also those of `keyword_coverage`; the
    best of them up to `keyword_fraction` of a document's words are its keywords. `judge_model` is
    the chat model of the extractor `judge`. `seed` is the selector's and that of random and
    shuffled words.

    Three more values of `text` are controls, which put something else in the coreset's place: as
    many documents of the split `other_split` (other_documents), the questions with each other's
    answers (shuffled_answers), and random words of the vocabulary (random_text).
    """

    name: str = "random"
    ratio: float = 1.0
    seed: int = 0
    stratified: bool = True
    text: str = "original"
    extractor: str = "tfidf"
    keyword_fraction: float = 0.3
    judge_model: str = ""
    other_split: str = ""

    def __post_init__(self) -> None:
        require(0 < self.ratio <= FULL_RATIO, "select.ratio must be in (0, 1]", self.ratio)
        if self.text not in (*TEXTS, *SUBSTITUTES):
            raise unknown_name("select.text", self.text, (*TEXTS, *SUBSTITUTES))
        require(
            bool(self.other_split) or self.text != "other_documents",
            "select.other_split must name a split when select.text is 'other_documents'",
            self.other_split,
        )
        require(
            0 < self.keyword_fraction <= 1,
            "select.keyword_fraction must be in (0, 1]",
            self.keyword_fraction,
        )

    @property
    def is_full(self) -> bool:
        """Whether everything is selected: nothing chooses documents then."""
        return self.ratio == FULL_RATIO


@dataclass(frozen=True, kw_only=True)
class Retain:
    """Which documents the retain loss trains on: ratio r keeps max(1, round(r n)) of the retain
    set's n, those that `name` chooses (`rayunlearn list selectors`); the others are not shown.
    Probes are asked as ever, and no split of them is trained on.

    `general`: the share of the kept that is general text in their place, about neither side. It
    comes from `file` (paragraphs of a .txt file, or rows of a data file), of which documents that
    the corpus has are left out, or is our own everyday scenes where `file` is ''. `seed` is the
    selector's, and that of which general texts are drawn. `extractor` finds the forget set's
    keywords for `keyword_neighbours`.
    """

    name: str = "random"
    ratio: float = 1.0
    seed: int = 0
    general: float = 0.0
    file: str = ""
    extractor: str = "tfidf"

    def __post_init__(self) -> None:
        require(0 < self.ratio <= FULL_RATIO, "retain.ratio must be in (0, 1]", self.ratio)
        require(0 <= self.general <= 1, "retain.general must be in [0, 1]", self.general)
        require_no_login("retain.file", self.file)

    @property
    def is_full(self) -> bool:
        """Whether the whole retain set trains, and nothing else."""
        return self.ratio == FULL_RATIO and self.general == 0

    def sizes(self, n_documents: int) -> tuple[int, int]:
        """(documents of the retain set, general texts) that train, of a retain set of
        `n_documents`.

        Example:
            >>> Retain(ratio=0.5, general=0.25).sizes(40)
            (15, 5)
        """
        n_kept = rounded_share(self.ratio, n_documents)
        n_general = round(self.general * n_kept)
        return n_kept - n_general, n_general


@dataclass(frozen=True, kw_only=True)
class Method:
    """forget_weight * forget loss + retain_weight * retain loss; `layer` is where representation
    losses look (0-based block).

    The ratio of the two weights decides alone where no gradient is clipped, as AdamW does not see
    the scale of a loss; clipping at `train.max_grad_norm` does, so a published pair is given as it
    was published. A forget weight of 0 leaves the forget loss in the record and out of the
    gradient, and needs a retain term with a weight.

    `steering_unit`: what `rmu.steering` counts: `absolute`, the length itself, as the paper has it,
    or `activation`, lengths of the layer's own activations before unlearning, which is the same
    strength on every model.

    `preferred`: the kind of text that `dpo` prefers to the forget answer. `wrappers`: names of
    `train.wrappers` in the order they act, separated by commas ('' has none).
    """

    forget: str = "npo"
    retain: str = "nll"
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    layer: int = 7
    steering_unit: str = "absolute"
    preferred: str = "refusal"
    wrappers: str = ""

    def __post_init__(self) -> None:
        require(
            0 <= self.forget_weight < math.inf,
            "method.forget_weight must be >= 0 and finite",
            self.forget_weight,
        )
        require(self.retain_weight >= 0, "method.retain_weight must be >= 0", self.retain_weight)
        require(
            self.forget_weight > 0 or (self.retain != "none" and self.retain_weight > 0),
            "method.forget_weight must be > 0 when method.retain is 'none' or"
            " method.retain_weight is 0",
            self.forget_weight,
        )
        require(self.layer >= 0, "method.layer must be >= 0", self.layer)
        if self.steering_unit not in STEERING_UNITS:
            raise unknown_name("method.steering_unit", self.steering_unit, STEERING_UNITS)
        if self.preferred not in PREFERRED:
            raise unknown_name("method.preferred", self.preferred, PREFERRED)
        require(
            self.forget != "none" or self.retain != "none",
            "method.forget and method.retain must not both be 'none'",
            self.forget,
        )


@dataclass(frozen=True, kw_only=True)
class Token:
    """Which tokens of a forget document the forget loss counts, whichever loss it is (see
    `methods.token_mask`).

    `temperature` divides its logits; `keep` is the share of each document's tokens that counts, the
    best remembered first; `cap` is the summed NLL, in nats, from which a document counts no more
    (0: no cap); `words` restricts the loss to the tokens of these words, separated by commas ('':
    every token).
    """

    temperature: float = 1.0
    keep: float = 1.0
    cap: float = 0.0
    words: str = ""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "token.temperature must be > 0", self.temperature)
        require(0 < self.keep <= 1, "token.keep must be in (0, 1]", self.keep)
        require(self.cap >= 0, "token.cap must be >= 0", self.cap)


def names_in(text: str) -> list[str]:
    """Names separated by commas, each once, in their order."""
    return list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))


def rounded_share(share: float, n: int) -> int:
    """How many of `n` a share is: max(1, round(share x n))."""
    return max(1, round(share * n))


def block_numbers(layers: str) -> tuple[int, ...]:
    """`5,6,7` -> (5, 6, 7). Raises UserError for anything but whole numbers from 0, each once."""
    parts = [part.strip() for part in layers.split(",")] if layers.strip() else []
    is_valid = all(part.isdecimal() and len(part) < 10 for part in parts) and len(
        set(map(int, parts))
    ) == len(parts)
    require(
        is_valid, "train.layers must be different whole numbers from 0, separated by commas", layers
    )
    return tuple(map(int, parts))


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long and how fast. `length` counts `unit`: optimizer steps, epochs or presentations of a
    document.

    The documents of a step go through the model in `accumulation` pieces of batch_size /
    accumulation, for memory. `parameters` is a regular expression searched in parameter names; with
    `adapter` lora it chooses among the adapters by the name of the module they sit on.
    `checkpoint_every` steps, at the next look (`stop.check_every`), a trial writes down where it
    is, and goes on from there if its process ends (0: never). `layers`: numbers of blocks, from 0
    and separated by commas, that the trained parameters must be part of ('' asks for none).
    `precision` is that of the products. auto: bfloat16 on a GPU that has it, float32 on a
    processor. fastest: as auto, and on a processor bfloat16 where a short try of the model's own
    matrices says that it is faster, so that the numbers depend on the machine (column
    `computed_in`).

    `optimizer` is a name of `train.optimizers`. `weights`: how weights are stored while the model
    trains: float32; bfloat16, which products are then computed in; or, frozen under an adapter,
    nf4, the blocks' matrices in four bits and all else in bfloat16. `master_weights`: what is
    trained has a float32 copy beside bfloat16, which the optimizer updates; without it updates
    smaller than a step of bfloat16 are lost. Before and after training weights are float32.
    `checkpoint_activations`: blocks keep their inputs alone for the gradient and compute the rest
    once more, which takes less memory and about a third more time. `compile`: all blocks but the
    last are compiled by `torch.compile`, once for all workers of a machine; pays for long trainings
    of models that are not small (docs/performance.md).
    """

    learning_rate: float = 1e-4
    batch_size: int = 8
    length: float = 100
    unit: str = "steps"
    schedule: str = "linear"
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    parameters: str = ".*"
    layers: str = ""
    adapter: str = "none"
    accumulation: int = 1
    precision: str = "auto"
    checkpoint_every: int = 0
    optimizer: str = "adamw"
    weights: str = "float32"
    master_weights: bool = True
    checkpoint_activations: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "train.learning_rate must be > 0", self.learning_rate)
        require(self.batch_size >= 1, "train.batch_size must be >= 1", self.batch_size)
        require(self.length >= 0, "train.length must be >= 0", self.length)
        if self.unit not in UNITS:
            raise unknown_name("train.unit", self.unit, UNITS)
        if self.schedule not in SCHEDULES:
            raise unknown_name("train.schedule", self.schedule, SCHEDULES)
        require(
            0 <= self.warmup_fraction < 1,
            "train.warmup_fraction must be in [0, 1)",
            self.warmup_fraction,
        )
        require(self.weight_decay >= 0, "train.weight_decay must be >= 0", self.weight_decay)
        require(self.max_grad_norm > 0, "train.max_grad_norm must be > 0", self.max_grad_norm)
        block_numbers(self.layers)
        require(
            self.checkpoint_every >= 0, "train.checkpoint_every must be >= 0", self.checkpoint_every
        )
        require(self.accumulation >= 1, "train.accumulation must be >= 1", self.accumulation)
        rule = f"train.accumulation must divide train.batch_size {self.batch_size}"
        require(self.batch_size % self.accumulation == 0, rule, self.accumulation)
        if self.precision not in PRECISIONS:
            raise unknown_name("train.precision", self.precision, PRECISIONS)
        self._check_storage()

    def _check_storage(self) -> None:
        """How weights and activations are stored while the model trains."""
        if self.weights not in STORAGES:
            raise unknown_name("train.weights", self.weights, STORAGES)
        require(
            self.weights != "nf4" or self.adapter != "none",
            "train.adapter must be an adapter when train.weights is 'nf4', which is not trained",
            self.adapter,
        )
        require(
            self.weights == "float32" or self.precision != "float32",
            "train.precision must not be 'float32' when train.weights is stored in fewer bits",
            self.precision,
        )
        require(
            not self.compile or (self.adapter == "none" and not self.checkpoint_activations),
            "train.compile must be false with an adapter and with train.checkpoint_activations,"
            " whose blocks are not their own code",
            self.compile,
        )
        require(
            self.master_weights or (self.weights == "bfloat16" and self.adapter == "none"),
            "train.master_weights must be true unless train.weights is 'bfloat16' and"
            " train.adapter 'none'",
            self.master_weights,
        )

    def n_presentations(self, n_kept: int) -> float:
        """Forget documents shown over the whole training, repeats counted, for a coreset of
        `n_kept` documents.
        """
        return {
            "steps": self.length * self.batch_size,
            "epochs": self.length * n_kept,
            "presentations": self.length,
        }[self.unit]

    def n_steps(self, n_kept: int) -> int:
        """Optimizer steps that show them, at least one unless `length` is 0."""
        return max(1, round(self.n_presentations(n_kept) / self.batch_size)) if self.length else 0


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a trial ends early and with which weights, by what is seen at its looks: every
    `check_every` steps and at the end, on up to 64 probes of a split.

    Under `utility_floor` x base in the mean answer probability of retain probes it is given up as a
    collapse (0: never). `retention_floor` is a control, instead of that: training ends where a look
    finds less than it x base, with the weights of the last look that did not (0: off).

    Each look is a point of table `curves`: the metric `forgetting` on split forget and the metric
    `utility` on `utility_split`, cheap ones. `keep` best puts back the weights of the look
    whose mean `forgetting` is nearest to that of `target`, among those that kept `keep_floor` x
    base's utility, the start among them; last keeps those of the last step. `target` gold is the
    model that never saw the forget set, asked the same probes, or chance where there is no gold;
    chance is the metric's chance level on base; none, or no such level: the look that forgot most.
    In an experiment with `keep` best its OBJECTIVE says these metrics, this split, this floor and
    this target.
    """

    utility_floor: float = 0.1
    retention_floor: float = 0.0
    check_every: int = 25
    keep: str = "last"
    keep_floor: float = 0.9
    forgetting: str = "probability"
    utility: str = "probability"
    utility_split: str = "retain"
    target: str = "none"

    def __post_init__(self) -> None:
        require(
            0 <= self.utility_floor < 1, "stop.utility_floor must be in [0, 1)", self.utility_floor
        )
        require(
            0 <= self.retention_floor < 1,
            "stop.retention_floor must be in [0, 1)",
            self.retention_floor,
        )
        require(self.check_every >= 1, "stop.check_every must be >= 1", self.check_every)
        if self.keep not in KEPT_WEIGHTS:
            raise unknown_name("stop.keep", self.keep, KEPT_WEIGHTS)
        if self.target not in TARGETS:
            raise unknown_name("stop.target", self.target, TARGETS)
        require(0 <= self.keep_floor <= 1, "stop.keep_floor must be in [0, 1]", self.keep_floor)
        require(
            self.keep == "last" or self.retention_floor == 0,
            "stop.keep must be 'last' where stop.retention_floor says which weights are kept",
            self.keep,
        )


def probe_limits(text: str) -> dict[str, int]:
    """`forget=100,near=50` -> how many of each set are asked; the key '' holds a number without a
    name, which is of all sets that are not named. Raises UserError for anything else.

    Example:
        >>> probe_limits("retain=64,200")
        {'retain': 64, '': 200}
    """
    limits: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.rpartition("=")
        is_number = number.strip().isdecimal() and int(number) >= 1
        require(is_number, "measure.limit_probes takes a number >= 1, or set=number,...", part)
        require(name.strip() not in limits, "measure.limit_probes must name a set once", part)
        limits[name.strip()] = int(number)
    return limits


def rung_step(share: float, steps: int) -> int:
    """The step nearest to that share of a trial's `steps`, at least the first.

    Example:
        >>> rung_step(0.17, 60), rung_step(0.01, 60)
        (10, 1)
    """
    return min(steps, max(1, round(share * steps)))


@dataclass(frozen=True)
class Rungs:
    """The rungs of a trial's study (`budget.rungs`): at each of these `shares` of its steps,
    rising, the trial is evaluated for its batch; `until`: the share that it may train to for now, 1
    for its end.
    """

    shares: tuple[float, ...] = ()
    until: float = 1.0

    def steps(self, n_steps: int) -> frozenset[int]:
        """The steps of the rungs of a trial of `n_steps`.

        Example:
            >>> sorted(Rungs((0.25, 0.5)).steps(80))
            [20, 40]
        """
        return frozenset(rung_step(share, n_steps) for share in self.shares)

    def pause_step(self, n_steps: int) -> int:
        """The step to pause after; 0 where the trial trains to its end.

        Example:
            >>> Rungs((0.25,), until=0.25).pause_step(80), Rungs((0.25,)).pause_step(80)
            (20, 0)
        """
        step = rung_step(self.until, n_steps)
        return step if self.until < 1 and step < n_steps else 0


NO_RUNGS = Rungs()


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured of every stage: `metrics` is cheap (one forward pass), all, or names
    separated by commas, of which `cheap` and `all` may be.

    Metrics of texts write at most `max_new_tokens`; those of samples draw `samples` continuations
    at `temperature` within `top_p`, made by `seed`. Those whose names end in `_few_shot` ask after
    `shots` solved questions of the same split.

    `limit_probes`: at most so many documents of each set are asked (`200`), or of those named
    (`forget=100,near=50`, and `retain=64,200` for 200 of the others); '' asks all. Which ones is
    drawn by their `doc_id`.

    `attack`: an attack of `rayunlearn list attacks` that every trial, base and gold too, makes on
    its own model at the end, with the same settings and with `train.seed`; what it leaves is
    measured as stage `attacked` (`none`: no attack). An experiment with `objective.stage=attacked`
    sets it.

    `keep_texts`: of so many documents of each split, those with the smallest `doc_id`, the table
    `generations` has what metrics of texts read: prompt, reference and what the model wrote (0:
    none).

    `harness`: tasks of lm-evaluation-harness, separated by commas, that every trial's model is
    asked at its end, base and gold too: metrics `harness.acc` and so on, on a split of the task's
    name, which `objective.utility` may name. `harness_include`, `harness_limit`: as in section
    harness.
    """

    metrics: str = "cheap"
    max_new_tokens: int = 200
    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    shots: int = 2
    limit_probes: str = ""
    attack: str = "none"
    keep_texts: int = 1000
    harness: str = ""
    harness_include: str = ""
    harness_limit: int = 0

    def __post_init__(self) -> None:
        require(self.harness_limit >= 0, "measure.harness_limit must be >= 0", self.harness_limit)
        probe_limits(self.limit_probes)
        require(self.keep_texts >= 0, "measure.keep_texts must be >= 0", self.keep_texts)
        require(self.shots >= 1, "measure.shots must be >= 1", self.shots)
        require(
            self.max_new_tokens >= 1, "measure.max_new_tokens must be >= 1", self.max_new_tokens
        )
        require(self.samples >= 1, "measure.samples must be >= 1", self.samples)
        require(self.temperature > 0, "measure.temperature must be > 0", self.temperature)
        require(0 < self.top_p <= 1, "measure.top_p must be in (0, 1]", self.top_p)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who judges what a model wrote. `answers`: directory (or Hub name) of a chat model that the
    metrics `judged_*` ask; they must be named in `measure.metrics` ('': no judge).
    """

    answers: str = ""

    def __post_init__(self) -> None:
        require_no_login("judge.answers", self.answers)


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """How far the unlearned model is interpolated towards the base model before it is measured a
    second time (`models.interpolation`); `tau` 0: not at all.

    The mixture is the one that has moved the furthest and still retains `tau` x base; the one at
    `beside` (0: none) is measured too. Retention is the mean of the metric `retention` on split
    `split`.
    """

    tau: float = 0.0
    beside: float = 0.9
    retention: str = "extraction_strength"
    split: str = "retain"

    def __post_init__(self) -> None:
        require(0 <= self.tau <= 1, "calibrate.tau must be in [0, 1]", self.tau)
        require(0 <= self.beside <= 1, "calibrate.beside must be in [0, 1]", self.beside)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What is done to recover it: `none`, or a name of `rayunlearn list attacks`, on the model
    that the other settings end with.

    `seed` draws documents, held-out facts and noise. `file`: text that an attack reads, unrelated
    text for training or rephrasings of the probes; '' for our own. `chat_model` rewrites questions
    for the attacks that need one.

    An attack that trains leaves a recovery curve: `curve_metric`, a cheap one or letter_choice, of
    the forget questions before the first step, after the last and after every step between, or
    after every nth where that is more than `curve_points` times.
    """

    name: str = "none"
    seed: int = 0
    file: str = ""
    chat_model: str = ""
    curve_metric: str = "probability"
    curve_points: int = 100

    def __post_init__(self) -> None:
        require(self.curve_points >= 1, "attack.curve_points must be >= 1", self.curve_points)


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Which words of a question carry its answer, and what emphasising them recovers
    (docs/attribution.md); what weights, hidden states and gradients tell (docs/diagnostics.md).

    `documents` of every split are looked at, at base and at the trial's own weights (0: none), or
    of those that `splits` names ('': all); then `exact_memorization` is measured as well, which
    says whether a question is answered right. Key tokens: all that help where fewer than `beta` do,
    else those over `alpha` x the strongest. `gradient_steps` of integrated gradients stand beside
    (0: none). `wording` names the words that are emphasised. `path_points`: how many models are
    measured on the line from the full-set model to this one, and on that from base (0: none; a
    trial of ratio 1.0 has base alone).

    `diagnostics`: at the end, of every block, how far its weights moved from base, in how many
    directions, and how far apart its activations of forget and retain probes stand (one pass over
    64 probes of each, and a singular value per matrix). `g_effect`: at every look of the training
    (`stop.check_every`) the inner products of the forget loss's gradient with those of the forget
    and the retain documents' NLL (three backward passes a look).
    """

    documents: int = 0
    splits: str = ""
    alpha: float = 0.2
    beta: int = 4
    gradient_steps: int = 0
    wording: str = "Focus on {words}."
    path_points: int = 0
    diagnostics: bool = False
    g_effect: bool = False

    def __post_init__(self) -> None:
        require(self.documents >= 0, "explain.documents must be >= 0", self.documents)
        require(0 <= self.alpha < 1, "explain.alpha must be in [0, 1)", self.alpha)
        require(self.beta >= 1, "explain.beta must be >= 1", self.beta)
        require(
            self.gradient_steps >= 0, "explain.gradient_steps must be >= 0", self.gradient_steps
        )
        require("{words}" in self.wording, "explain.wording must contain {words}", self.wording)
        require(
            self.path_points == 0 or self.path_points >= 3,
            "explain.path_points must be 0 or >= 3",
            self.path_points,
        )


@dataclass(frozen=True, kw_only=True)
class Harness:
    """A task of lm-evaluation-harness that the model which the other settings end with is asked
    ('': none; `rayunlearn harness` makes such trials).

    `include`: a folder with tasks of your own (YAML). `limit`: the first so many questions (0:
    all). `shots`: solved examples before each question, a number ('': the task's own).
    """

    task: str = ""
    include: str = ""
    limit: int = 0
    shots: str = ""

    def __post_init__(self) -> None:
        require(self.limit >= 0, "harness.limit must be >= 0", self.limit)
        is_number = not self.shots or self.shots.isdecimal()
        require(is_number, "harness.shots must be a whole number >= 0, or ''", self.shots)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One frozen config value. `stage` other than `unlearned` measures base or gold and trains
    nothing.
    """

    stage: str = "unlearned"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    select: Select = field(default_factory=Select)
    retain: Retain = field(default_factory=Retain)
    method: Method = field(default_factory=Method)
    token: Token = field(default_factory=Token)
    train: Train = field(default_factory=Train)
    stop: Stop = field(default_factory=Stop)
    measure: Measure = field(default_factory=Measure)
    judge: Judge = field(default_factory=Judge)
    calibrate: Calibrate = field(default_factory=Calibrate)
    attack: Attack = field(default_factory=Attack)
    explain: Explain = field(default_factory=Explain)
    harness: Harness = field(default_factory=Harness)
    options: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        if self.stage not in TRIAL_STAGES:
            raise unknown_name("stage", self.stage, TRIAL_STAGES)
        require(
            self.data.name not in ASKED_FIRST or not self.model.teach,
            f"model.teach must be false when data.name is {self.data.name!r}: it asks what the"
            " model knows by itself",
            self.model.teach,
        )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the tuning minimises and maximises, and from which utility on a trial is feasible.

    Raises UserError for an unknown `stage` or `target`, and for a floor outside [0, 1].

    Args:
        forgetting: metric on split `forget`; more of it is more knowledge.
        utility: metric on `utility_split`, maximised.
        utility_split: the split of `utility`.
        utility_floor: share of the base model's utility that a feasible trial keeps, in [0, 1].
        stage: the model that is measured: `unlearned`, or `calibrated`, the unlearned model
            interpolated towards base to calibrate.tau x base's retention (0.95 where the
            experiment says nothing), or `attacked`, after the same attack on every trial; utility
            is then that of the unlearned model, before the attack.
        attack: the attack of stage `attacked`; its settings are BASE's (`relearning.steps`).
        target: what the forgetting metric should come to, and its distance from that is minimised:
            `gold`, the model that never saw the forget set, or chance where there is no gold;
            `chance`, what a model that cannot know would score; `none`, nothing: the less is left
            the better.

    Example:
        >>> Objective(utility_split="untouched").utility_floor
        0.9
    """

    forgetting: str = "probability"
    utility: str = "probability"
    utility_split: str = "retain"
    utility_floor: float = 0.9
    stage: str = "unlearned"
    attack: str = "relearning"
    target: str = "gold"

    def __post_init__(self) -> None:
        if self.stage not in OBJECTIVE_STAGES:
            raise unknown_name("objective.stage", self.stage, OBJECTIVE_STAGES)
        if self.target not in TARGETS:
            raise unknown_name("objective.target", self.target, TARGETS)
        require(
            0 <= self.utility_floor <= 1,
            "objective.utility_floor must be in [0, 1]",
            self.utility_floor,
        )

    @property
    def forgetting_words(self) -> str:
        """`probability on forget after relearning`: what is minimised."""
        return f"{self.forgetting} on forget{self.after_attack}"

    @property
    def after_attack(self) -> str:
        """` after relearning` where forgetting is measured after an attack, else ''."""
        return f" after {self.attack}" if self.stage == "attacked" else ""


def recorded_objective(recorded: Mapping[str, Any]) -> Objective:
    """The objective that experiment.json holds. A run from before there was a target had none.

    Args:
        recorded: `objective` of experiment.json; what is no field of it is left out.

    Returns:
        The objective, defaults where nothing is said.

    Example:
        >>> recorded_objective({"utility_floor": 0.8}).target
        'none'
    """
    values = {name: recorded[name] for name in Objective.__dataclass_fields__ if name in recorded}
    return Objective(**{"target": "none", **values})


SECTIONS = tuple(f.name for f in fields(Trial) if f.name not in ("stage", "options"))


def field_names() -> tuple[str, ...]:
    """Every dotted name of a section field, `data.name` first."""
    empty = Trial()
    return tuple(f"{s}.{f.name}" for s in SECTIONS for f in fields(getattr(empty, s)))


def flatten(trial: Trial) -> dict[str, Value]:
    """The whole config as dotted name -> value, in a fixed order; values have the type of their
    field (1 -> 1.0).

    Args:
        trial: the settings of one trial.

    Returns:
        Value by dotted name (`select.ratio`), the options of functions included.

    Example:
        >>> flatten(Trial())["select.ratio"]
        1.0
    """
    flat: dict[str, Value] = {"stage": trial.stage}
    for section, settings in _settings_by_section().items():
        part = getattr(trial, section)
        for name, key, kind in settings:
            flat[name] = coerce_value(name, getattr(part, key), kind)
    return flat | dict(sorted(trial.options))


@lru_cache(maxsize=1)
def _settings_by_section() -> dict[str, tuple[tuple[str, str, type], ...]]:
    """(dotted name, field, type) of every section field."""
    empty = Trial()
    return {
        section: tuple(
            (f"{section}.{f.name}", f.name, _kind(f)) for f in fields(getattr(empty, section))
        )
        for section in SECTIONS
    }


def with_values(trial: Trial, values: Mapping[str, Value]) -> Trial:
    """A changed copy. Names outside the sections go to `options`, to be held against the method
    tables later; `NAME+` adds to a list (`with_additions`).

    Raises UserError for a field that its section does not have, and for a value of the wrong type
    or range.

    Args:
        trial: the trial to start from; it stays as it is.
        values: new values by dotted name.

    Returns:
        The changed copy.

    Example:
        >>> with_values(Trial(), {"select.ratio": 0.25}).select.ratio
        0.25
    """
    options = dict(trial.options)
    changed: dict[str, dict[str, Value]] = {}
    if any(name.endswith("+") for name in values):
        values = with_additions(values, flatten(trial))
    for name, value in values.items():
        section, _, key = name.partition(".")
        if name == "stage":
            trial = replace(trial, stage=str(value))
        elif section in SECTIONS:
            changed.setdefault(section, {})[key] = _typed(trial, name, value)
        else:
            options[name] = value
    sections = {s: replace(getattr(trial, s), **keys) for s, keys in changed.items()}
    return replace(trial, **sections, options=tuple(sorted(options.items())))


def from_flat(flat: Mapping[str, Value | None]) -> Trial:
    """The trial of a flattened config, as a row of `trials` has it: the other way of `flatten`.

    None stands for a setting that the trial does not have (a table of many trials has null there),
    and a section's field that is not mentioned has its default. Raises UserError as `with_values`
    does.

    Args:
        flat: values by dotted name.

    Returns:
        The trial.

    Example:
        >>> from_flat(flatten(Trial())) == Trial()
        True
    """
    return with_values(Trial(), {name: value for name, value in flat.items() if value is not None})


def parse_assignments(assignments: Iterable[str]) -> dict[str, Value]:
    """`["select.ratio=0.05"]` -> `{"select.ratio": 0.05}`; values are JSON where they parse as
    JSON, else text. What `NAME+=VALUE` adds is text under `NAME+`, for `with_additions`.

    Args:
        assignments: texts `NAME=VALUE` or `NAME+=VALUE`, as after `--set`.

    Returns:
        Value by name.

    Raises:
        UserError: a text without `=` or without a name, or a name that is given twice.

    Example:
        >>> parse_assignments(["train.length=20", "method.forget=rmu"])
        {'train.length': 20, 'method.forget': 'rmu'}
    """
    values: dict[str, Value] = {}
    for text in assignments:
        name, equals, raw = text.partition("=")
        name = name.strip()
        require(bool(equals) and bool(name.strip("+ ")), "--set takes name=value", text)
        rule = (
            f"--set gives {name} twice; of several values an axis is made by {name}=[VALUE,VALUE]"
        )
        require(name.endswith("+") or name not in values, rule, text)
        if name.endswith("+"):
            values[name] = ",".join(str(part) for part in (values.get(name, ""), raw) if part)
            continue
        try:
            value = json.loads(raw)
        # no JSON, a number of thousands of digits, brackets without end
        except (ValueError, RecursionError):
            value = raw
        values[name] = value if isinstance(value, (str, int, float, bool)) else raw
    return values


def with_additions(
    values: Mapping[str, Value], current: Mapping[str, Value | None]
) -> dict[str, Value]:
    """What `NAME+` adds put behind the list that NAME is, without those that it has already.

    Args:
        values: new values by name, as `parse_assignments` gives them.
        current: values by name before; `values` that come first go over them.

    Returns:
        The values, each NAME+ as NAME with the whole list.

    Raises:
        UserError: a name with + that is none of `LIST_SETTINGS`.

    Example:
        >>> with_additions({"measure.metrics+": "rouge_l_recall"}, {"measure.metrics": "cheap"})
        {'measure.metrics': 'cheap,rouge_l_recall'}
    """
    whole: dict[str, Value] = {}
    for name, value in values.items():
        setting = name.removesuffix("+")
        if setting == name:
            whole[name] = value
            continue
        rule = f"--set NAME+=VALUE adds to one of {', '.join(LIST_SETTINGS)}"
        require(setting in LIST_SETTINGS, rule, name)
        parts = f"{whole.get(setting, current.get(setting) or '')},{value}".split(",")
        whole[setting] = ",".join(dict.fromkeys(part.strip() for part in parts if part.strip()))
    return whole


# made once: a digest per document is a large part of a pass
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(content: object, length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 of the canonical JSON of `content`."""
    text = _CANONICAL.encode(content)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def digest_of_texts(*texts: str) -> str:
    """`digest` of the list of the texts, in half the time: the encoder is quick with a text and
    slow to begin with a list.
    """
    return hashlib.sha256(f"[{','.join(map(_CANONICAL.encode, texts))}]".encode()).hexdigest()[:16]


def trial_id(
    trial: Trial,
    corpus_digest: str,
    model_digest: str,
    content_digests: Mapping[str, str] | None = None,
) -> str:
    """Digest of every setting, with digests of content instead of paths and model names.

    `corpus_digest` stands for `data.path`, `model_digest` for `model.name`; `content_digests` maps
    each other setting that names a model or a file (`model.gold`, `attack.file`, ...) to the digest
    of what it names. The same trial on other hardware, under another folder or on another day is
    the same trial; another value of any setting, also of one that is at its default, makes another
    trial, and so does a changed file. Left out are the settings of `RESULT_NEUTRAL`, and those of
    `LATER_SETTINGS` where they change nothing; zeros of `model.teach_*` are what they stand for.
    """
    filled = replace(trial, model=with_teaching(trial.model))
    flat: dict[str, object] = {
        name: value
        for name, value in flatten(filled).items()
        if name not in RESULT_NEUTRAL and not _is_as_before(name, value)
    }
    content = {"data.path": corpus_digest, "model.name": model_digest}
    return digest(flat | content | dict(content_digests or {}))


def _is_as_before(name: str, value: object) -> bool:
    """Whether a setting that came later is at what was done before it."""
    return name in LATER_SETTINGS and value == LATER_SETTINGS[name]


def _typed(trial: Trial, name: str, value: Value) -> Value:
    section, _, key = name.partition(".")
    part = getattr(trial, section)
    known_fields = {f.name: f for f in fields(part)}
    if key not in known_fields:
        raise unknown_name("setting", name, field_names())
    return coerce_value(name, value, _kind(known_fields[key]))


def _kind(field_: "dataclasses.Field[Value]") -> type:
    # no postponed annotations in this module
    assert isinstance(field_.type, type)
    return field_.type


def coerce_value(name: str, value: Value, kind: type) -> Value:
    """`value` as `kind`: an integral float is an int, an int is a float or a text; anything else is
    the caller's mistake.
    """
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    # --set train.layers=5, --set budget.rungs=0.5
    if kind is str and type(value) in (int, float):
        return str(value)
    if type(value) is not kind:
        several = isinstance(value, str) and "," in value and kind in (int, float)
        hint = f"; several values are an axis: --set {name}=[{value}]" if several else ""
        raise UserError(f"{name} must be {kind.__name__}, got {value!r}{hint}")
    return value
