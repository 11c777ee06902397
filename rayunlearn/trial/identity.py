"""What identifies a trial: digests of its settings, corpus and models."""

import hashlib
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from rayunlearn.config import Data, Model, Trial, digest, trial_id
from rayunlearn.data.documents import Corpus
from rayunlearn.data.load import load_corpus
from rayunlearn.errors import require
from rayunlearn.models.load import model_digest
from rayunlearn.train.teach import RECIPE


@lru_cache(maxsize=8)
def corpus_of(data: Data) -> Corpus:
    """The corpus of a data section, read or generated once per process."""
    return load_corpus(data)


@lru_cache(maxsize=8)
def base_model_digest(model: Model, corpus_digest: str) -> str:
    """What identifies the weights a trial starts from: of a taught model its recipe and corpus,
    else its content.
    """
    origin = "" if model.name == "scratch" else model_digest(model.name)
    settings = {name: value for name, value in asdict(model).items() if name != "unlearned"} | {
        "name": origin,
        "gold": "",
    }
    return digest([settings, corpus_digest, RECIPE]) if model.teach else origin


def identify_trial(trial: Trial) -> str:
    """The trial's id: a digest of its config with content digests in the place of paths."""
    corpus_digest = corpus_of(trial.data).digest
    return trial_id(
        trial,
        corpus_digest,
        evaluated_model_digest(trial, base_model_digest(trial.model, corpus_digest)),
        attack_digest(trial),
    )


def attack_digest(trial: Trial) -> str:
    """What identifies the file that an attack reads: its content, '' without one. Raises UserError
    where it is not there.
    """
    if not trial.attack.file:
        return ""
    require(
        Path(trial.attack.file).is_file(),
        "attack.file must be a file that exists",
        trial.attack.file,
    )
    return hashlib.sha256(Path(trial.attack.file).read_bytes()).hexdigest()[:16]


def evaluated_model_digest(trial: Trial, start: str) -> str:
    """What identifies the weights of the trial: `start`, but of a gold or unlearned model that was
    given its own content.

    Of an unlearned one `start` too, because metrics compare with base.
    """
    if trial.stage == "gold" and not trial.model.teach:
        return cached_model_digest(trial.model.gold)
    return (
        start
        if trains_weights(trial) or trial.stage != "unlearned"
        else digest([start, cached_model_digest(trial.model.unlearned)])
    )


@lru_cache(maxsize=8)
def cached_model_digest(name: str) -> str:
    """`model_digest`, read once per process: every trial of a panel asks for it."""
    return model_digest(name)


def trains_weights(trial: Trial) -> bool:
    """Whether the trial changes weights: base, gold and a model that was unlearned elsewhere are
    measured as they are.
    """
    return trial.stage == "unlearned" and not trial.model.unlearned
