"""What an attack is: a row of a table, its kind, and what its function may ask for by the name of a
positional parameter.

An attack is (model, probes) -> (model, probes), in four kinds. `weights` changes `model` in place
and returns None. `prompt` takes one probe as `document` and returns it changed; it never puts words
of the asked answer into the prompt. `tokens` takes `probes`, encoded, and returns them changed
(noise, a searched prefix); what it hangs on the model it puts on `leaving`. `inside` and `decoding`
do not change what is asked, they look elsewhere: they return rows {doc_id, split, metric, value}
and, inside, `x` (the layer). Keyword-only arguments are hyperparameters, each with its default in
the signature. Each file of the package has its own table at the bottom; `table.ATTACKS` is all of
them.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from rayunlearn.errors import require
from rayunlearn.ranges import FamilyRow

# Tokens of one forward pass of an attack that reads hidden states.
TOKENS_PER_BATCH = 8192

ATTACK_KINDS = {
    "weights": "function(model, ...) -> None: the weights are changed in place",
    "prompt": (
        "function(document, ...) -> Document: one probe's text is changed; wording.NotAllowed, with"
        " the reason, leaves it out"
    ),
    "tokens": "function(probes, ...) -> list[Probe]: what is asked is changed as token ids",
    "inside": (
        "function(model, probes, ...) -> rows doc_id, split, metric, value, x: what the layers"
        " know, x is the layer"
    ),
    "decoding": (
        "function(model, probes, ...) -> rows doc_id, split, metric, value: what other answers than"
        " the first say"
    ),
}

# The name of a positional parameter decides what it is given. What no chosen attack asks for is not
# made.
ATTACK_INPUTS = {
    "model": "the model under attack, in evaluation mode; only weight attacks change its weights",
    "base": "the model before unlearning, frozen, for attacks that compare with it",
    "tokenizer": "the model's tokenizer",
    "document": "one probe as a Document (kind prompt)",
    "probes": "every probe, encoded (metrics.inputs.Probe), its split in `split`",
    "held_in": (
        "the probes of split forget that an attack may learn from; they are then not measured. Half"
        " of the facts, by attack.seed"
    ),
    "forget_probes": "every Document asked on split forget, the asked one too",
    "retain_probes": "every Document asked on split retain",
    "forget_sequences": (
        "the documents that were to be forgotten, encoded, in an order drawn by attack.seed"
    ),
    "retain_sequences": (
        "the documents of the retain side, encoded, in an order drawn by attack.seed"
    ),
    "held_in_sequences": "question and answer of the facts in `held_in`, encoded",
    "unrelated_sequences": "text about neither side, encoded: that of attack.file, else our own",
    "texts": (
        "doc_id -> condition -> text, from attack.file, else what the data brings"
        " (Corpus.rephrasings); empty without either"
    ),
    "chat": (
        "a chat model as a function of messages (models.chat.Chat), from attack.chat_model; None"
        " without one"
    ),
    "encode": "function(Document) -> Probe, with the trial's template and length",
    "template": "data.template, the layout of a question",
    "rng": "random.Random of attack.seed and the attack's name; of kind prompt also of the doc_id",
    "seed": "attack.seed, where torch draws",
    "watch": (
        "function(step) -> bool, to be handed to train.loop.optimise as keep_going with check_every"
        " 1: it measures along the way"
    ),
    "leaving": "contextlib.ExitStack: hooks are taken off by it when the attack has been measured",
}


@dataclass(frozen=True, kw_only=True)
class AttackRow(FamilyRow[Any]):
    """A row of the family. `source`: paper, or ours. `control`: what tells its effect from that of
    anything else, beside the same attack on base and on gold, which always run. `companion`: name
    of the attack that is this control, '' for none.

    `of_matrices`: it changes every weight matrix of the blocks, and has failed where it reached few
    (`models.matrices.require_touched`). `trains`: it takes optimizer steps, of its own learning
    rate; `holds_out`: only facts outside `held_in` are measured. `package`: what it needs that
    rayunlearn does not bring; `elsewhere`: the environment variable that names a Python which has
    it.
    """

    kind: str
    control: str = "base and gold"
    companion: str = ""
    of_matrices: bool = False
    trains: bool = False
    holds_out: bool = False
    package: str = ""
    elsewhere: str = ""


@dataclass(frozen=True)
class AttackTraining:
    """How an attack trains: AdamW at `learning_rate`, `steps` steps of `batch_size` documents."""

    learning_rate: float
    steps: int
    batch_size: int


def check_package_installed(name: str, attack: AttackRow) -> None:
    """Raise UserError, before anything is scheduled, where the attack's package is missing."""
    installed = (
        not attack.package
        or find_spec(attack.package) is not None
        or bool(attack.elsewhere and os.environ.get(attack.elsewhere))
    )
    named = f", or {attack.elsewhere} naming a Python that has it" if attack.elsewhere else ""
    require(
        installed, f"{name} needs the package {attack.package}{named} (docs/attacks.md)", "none"
    )
