"""What identifies a trial: digests of its settings, corpus and models."""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from rayunlearn.attacks.table import ATTACKS
from rayunlearn.config import (
    ASKED_FIRST,
    LATER_SETTINGS,
    Data,
    Model,
    Trial,
    digest,
    trial_id,
    with_teaching,
)
from rayunlearn.data.documents import Corpus
from rayunlearn.data.hub import is_local
from rayunlearn.data.load import load_corpus
from rayunlearn.data.probe_sets import parse_probe_sets, with_probe_sets
from rayunlearn.errors import require
from rayunlearn.keywords.table import EXTRACTORS
from rayunlearn.models.load import model_digest
from rayunlearn.ranges import required_inputs
from rayunlearn.storage.artifact_cache import file_digest
from rayunlearn.train.teach import RECIPE
from rayunlearn.trial.code import plugin_code
from rayunlearn.trial.domain import domain_corpus
from rayunlearn.trial.known import known_corpus

# the corpora of `config.ASKED_FIRST`
ASKED = {"known": known_corpus, "mmlu-domain": domain_corpus}


# what a task of lm-evaluation-harness is made of
TASK_FILES = (".yaml", ".yml", ".py")


def corpus_of(data: Data, model: Model) -> Corpus:
    """The corpus of a data section, read or generated once per process; of facts that the model
    knows by itself, what this model knows.
    """
    return _corpus_of(data, model.name if data.name in ASKED_FIRST else "")


@lru_cache(maxsize=8)
def _corpus_of(data: Data, asked_model: str) -> Corpus:
    corpus = ASKED[data.name](data, asked_model) if asked_model else load_corpus(data)
    return with_probe_sets(corpus, data)


def base_model_digest(model: Model, corpus_digest: str, data: Data) -> str:
    """What identifies the weights a trial starts from: of a trained model its recipe, its corpus
    and how that is written into tokens, else its content.
    """
    origin = "" if model.name == "scratch" else cached_model_digest(model.name)
    if not model.teach:
        return origin
    settings = {
        name: value
        for name, value in asdict(with_teaching(model)).items()
        if name != "unlearned" and LATER_SETTINGS.get(f"model.{name}") != value
    } | {"name": origin, "gold": ""}
    return digest([settings, corpus_digest, data.template, data.max_tokens, RECIPE])


def identify_trial(trial: Trial) -> str:
    """The trial's id: a digest of its config with content digests instead of paths."""
    corpus_digest = corpus_of(trial.data, trial.model).digest
    start = base_model_digest(trial.model, corpus_digest, trial.data)
    return trial_id(trial, corpus_digest, start, content_digests(trial))


def attack_digest(trial: Trial) -> str:
    """What identifies the file that an attack reads: its content, '' without one. Raises UserError
    where it is not there.
    """
    return _content_of("attack.file", trial.attack.file)


def retain_digest(trial: Trial) -> str:
    """What identifies the general text that the retain loss trains on, as `attack_digest`."""
    return _content_of("retain.file", trial.retain.file)


def tasks_digest(setting: str, folder: str) -> str:
    """What identifies a folder of tasks: the content of its YAML and Python files, by their names;
    the data that they name is not in it. Raises UserError where it is not there.
    """
    require(Path(folder).is_dir(), f"{setting} must be a folder that exists", folder)
    files = [file for file in sorted(Path(folder).rglob("*")) if file.suffix in TASK_FILES]
    return digest([[file.name, file_digest(file)] for file in files])


def _content_of(setting: str, name: str) -> str:
    if not name:
        return ""
    require(Path(name).is_file(), f"{setting} must be a file that exists", name)
    return file_digest(Path(name))[:16]


def cached_model_digest(name: str) -> str:
    """`model_digest`; of a Hub name once per process, because each asking goes to the Hub."""
    return model_digest(name) if is_local(name) else _hub_digest(name)


@lru_cache(maxsize=8)
def _hub_digest(name: str) -> str:
    return model_digest(name)


def trains_weights(trial: Trial) -> bool:
    """Whether the trial changes weights: base, gold and a model that was unlearned elsewhere are
    measured as they are.
    """
    return trial.stage == "unlearned" and not trial.model.unlearned


def content_digests(trial: Trial) -> dict[str, str]:
    """Setting -> digest of what it names, for the models and files that a trial loads beside its
    data and the model it starts from; and the source of its functions that plugins brought.

    Raises UserError where one is not there.
    """
    model, select, attack = trial.model, trial.select, trial.attack
    judges = "judged" in required_inputs(EXTRACTORS[select.extractor].function)
    chats = attack.name != "none" and "chat" in ATTACKS[attack.name].inputs
    models = {
        "model.gold": "" if model.teach else model.gold,
        "model.unlearned": model.unlearned,
        "select.judge_model": select.judge_model if judges else "",
        "attack.chat_model": attack.chat_model if chats else "",
        "judge.answers": trial.judge.answers,
    }
    digests = {setting: cached_model_digest(name) for setting, name in models.items() if name}
    # their content is in the corpus's digest
    names = {"data.probes": ",".join(parse_probe_sets(trial.data.probes))}
    digests |= names if trial.data.probes else {}
    digests |= plugin_code(trial)
    folders = {
        "harness.include": trial.harness.include,
        "measure.harness_include": trial.measure.harness_include,
    }
    digests |= {name: tasks_digest(name, folder) for name, folder in folders.items() if folder}
    digests |= {"retain.file": retain_digest(trial)} if trial.retain.file else {}
    return digests | ({"attack.file": attack_digest(trial)} if attack.file else {})
