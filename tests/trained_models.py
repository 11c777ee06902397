"""Models that tests train once and read from the disk afterwards: `.cache/tests` of the checkout,
or the folder that the environment variable RAYUNLEARN_TEST_MODELS names.

A model's folder is named by a digest of everything that decides its weights, so a stale one is
never read. It appears by one rename while its lock is held, and is checked against the checksums
written with it before each use.
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from filelock import FileLock

from rayunlearn import data, models
from rayunlearn import train as training
from rayunlearn.config import Trial, digest, flatten
from rayunlearn.data.documents import Corpus
from rayunlearn.train.teach import RECIPE, train_base_or_gold

DEFAULT = Path(__file__).parents[1] / ".cache" / "tests"
CHECKSUMS = "checksums.json"
# of another state of the code, and of no use to anybody who comes back to work
UNUSED_SECONDS = 14 * 86_400


def silent(_step: int, _steps: int) -> None:
    """A progress callback that says nothing."""


def trained_model(
    trial: Trial, corpus: Corpus, role: str, target: Path, *, store: Path | None = None
) -> Path:
    """The model of the role (base, gold) copied to `target`, which a test may do anything to.

    Trained if the store has none, or one whose files are not what was written.
    """
    folder = store or Path(os.environ.get("RAYUNLEARN_TEST_MODELS") or DEFAULT)
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / model_key(trial, corpus, role)
    with FileLock(stored.with_suffix(".lock")):
        if not is_whole(stored):
            shutil.rmtree(stored, ignore_errors=True)
            _train_into(stored, trial, corpus, role)
            remove_unused(folder)
        os.utime(stored)
        shutil.copytree(stored, target, ignore=shutil.ignore_patterns(CHECKSUMS))
    return target


def model_key(trial: Trial, corpus: Corpus, role: str) -> str:
    """Digest of what decides the weights: settings, corpus, recipe, our code that trains, the
    libraries it calls and the processor's instructions that they choose by.
    """
    libraries = [torch.__version__, transformers.__version__, tokenizers.__version__]
    settings = {name: value for name, value in flatten(trial).items() if name.startswith("model.")}
    reading = [trial.data.template, trial.data.max_tokens]
    code = [source_digest(package.__path__[0]) for package in (data, models, training)]
    processor = torch.backends.cpu.get_cpu_capability()
    return digest([role, settings, reading, corpus.digest, RECIPE, code, libraries, processor])


def source_digest(package: str) -> str:
    """Digest of the Python files of a package's folder, by name and content."""
    files = sorted(Path(package).rglob("*.py"))
    return digest([[file.name, file.read_text(encoding="utf-8")] for file in files])


def is_whole(stored: Path) -> bool:
    """Whether the folder holds exactly the files, to the byte, that were written to it."""
    try:
        written = json.loads((stored / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(written == checksums(stored))


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the list of checksums itself."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.name != CHECKSUMS
    }


def remove_unused(folder: Path) -> None:
    """Remove models that no test has read for two weeks, and what a killed process left. Lock files
    stay: somebody may hold one.
    """
    for entry in folder.iterdir():
        if entry.is_dir() and time.time() - entry.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(entry)


def _train_into(stored: Path, trial: Trial, corpus: Corpus, role: str) -> None:
    """Train beside `stored` and rename. The caller holds its lock, so nobody else is at it."""
    unfinished = stored.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    train_base_or_gold(trial, corpus, role, unfinished, silent)
    (unfinished / CHECKSUMS).write_text(json.dumps(checksums(unfinished)), encoding="utf-8")
    os.replace(unfinished, stored)
