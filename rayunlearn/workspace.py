"""What one (data, model) pair needs: its corpus and its models, made once and found again by
digest.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

from filelock import FileLock
from transformers import AutoConfig

from rayunlearn.config import Data, Model, Trial, block_numbers, digest, trial_id
from rayunlearn.data.corpus import load_corpus
from rayunlearn.data.documents import Corpus
from rayunlearn.errors import require
from rayunlearn.families import check
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.retain import RETAIN
from rayunlearn.methods.view import needs
from rayunlearn.models.load import model_digest, resolve_model
from rayunlearn.models.scratch import SHAPES
from rayunlearn.results.mirror import folder_is_there, origin, share_folder
from rayunlearn.train.teach import RECIPE, teach


@dataclass(frozen=True)
class Workspace:
    """Corpus, model folders and cache of one (data, model) pair. `gold` is '' where there is none,
    `unlearned` where it is trained here.
    """

    corpus: Corpus
    base: str
    gold: str
    base_digest: str
    cache: Path
    unlearned: str = ""


@lru_cache(maxsize=8)
def corpus_of(data: Data) -> Corpus:
    """The corpus of a data section, read or generated once per process."""
    return load_corpus(data)


@lru_cache(maxsize=8)
def start_digest(model: Model, corpus_digest: str) -> str:
    """What identifies the weights a trial starts from: of a taught model its recipe and corpus,
    else its content.
    """
    origin = "" if model.name == "scratch" else model_digest(model.name)
    settings = {name: value for name, value in asdict(model).items() if name != "unlearned"} | {
        "name": origin,
        "gold": "",
    }
    return digest([settings, corpus_digest, RECIPE]) if model.teach else origin


def identify(trial: Trial) -> str:
    """The trial's id: a digest of its config with content digests in the place of paths."""
    corpus_digest = corpus_of(trial.data).digest
    return trial_id(
        trial,
        corpus_digest,
        measured_digest(trial, start_digest(trial.model, corpus_digest)),
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


def measured_digest(trial: Trial, start: str) -> str:
    """What identifies the weights of the trial: `start`, but of a gold or unlearned model that was
    given its own content.

    Of an unlearned one `start` too, because metrics compare with base.
    """
    if trial.stage == "gold" and not trial.model.teach:
        return given_digest(trial.model.gold)
    return (
        start
        if trains(trial) or trial.stage != "unlearned"
        else digest([start, given_digest(trial.model.unlearned)])
    )


@lru_cache(maxsize=8)
def given_digest(name: str) -> str:
    """`model_digest`, read once per process: every trial of a panel asks for it."""
    return model_digest(name)


def trains(trial: Trial) -> bool:
    """Whether the trial changes weights: base, gold and a model that was unlearned elsewhere are
    measured as they are.
    """
    return trial.stage == "unlearned" and not trial.model.unlearned


def start_of(trial: Trial, workspace: Workspace) -> str:
    """Folder of the weights that the trial begins with. Raises UserError for stage gold where there
    is no gold model.
    """
    if trial.stage == "gold":
        require(
            bool(workspace.gold),
            "stage 'gold' needs a gold model (model.teach, or model.gold)",
            workspace.gold,
        )
        return workspace.gold
    return (
        workspace.unlearned
        if trial.stage == "unlearned" and workspace.unlearned
        else workspace.base
    )


def validate(trial: Trial) -> Trial:
    """`families.check`, and what only the model can say: the layers exist. Raises UserError before
    anything runs.
    """
    checked = check(trial)
    used = {
        *needs(FORGET[trial.method.forget].function),
        *needs(RETAIN[trial.method.retain].function),
    }
    named = block_numbers(trial.train.layers)
    depth = model_depth(trial.model) if "hidden" in used or named else 0
    require(
        max(named, default=-1) < max(depth, 1),
        f"train.layers must be < {depth}, the model's number of blocks",
        trial.train.layers,
    )
    if "hidden" in used:
        require(
            trial.method.layer < depth,
            f"method.layer must be < {depth}, the model's number of blocks",
            trial.method.layer,
        )
    return checked


def model_depth(model: Model) -> int:
    """Number of transformer blocks, without loading weights."""
    if model.name == "scratch":
        return SHAPES[model.size].blocks
    return int(
        AutoConfig.from_pretrained(
            resolve_model(model.name), trust_remote_code=False
        ).num_hidden_layers
    )


def workspace_of(trial: Trial, cache: Path) -> Workspace:
    """Where things are for this trial, whether they have been made yet or not."""
    corpus = corpus_of(trial.data)
    start = start_digest(trial.model, corpus.digest)
    folder = cache / "models" / start
    if trial.model.teach:
        return Workspace(corpus, str(folder / "base"), str(folder / "gold"), start, cache)
    return Workspace(
        corpus, trial.model.name, trial.model.gold, start, cache, trial.model.unlearned
    )


def prepare(
    trial: Trial,
    cache: Path,
    progress: Callable[[str, int, int], None],
    roles: Sequence[str] = ("base", "gold"),
) -> Workspace:
    """Teach the models that are still missing (one process at a time per folder) and return the
    workspace.

    `progress(role, done, planned)` is called while teaching. Taking models as they are needs no
    preparation.
    """
    workspace = workspace_of(trial, cache)
    for role in roles if trial.model.teach else ():
        directory = Path(workspace.base if role == "base" else workspace.gold)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{directory}.lock"):
            if is_taught(directory):
                continue
            if not (directory / "config.json").is_file():
                teach(trial, workspace.corpus, role, directory, partial(progress, role))
            share_folder(directory)
    return workspace


def is_taught(directory: Path) -> bool:
    """Whether teaching has ended: the folder is renamed into place as its last act, and of a mirror
    it is under the URL.
    """
    return (
        folder_is_there(directory) if origin(directory) else (directory / "config.json").is_file()
    )
