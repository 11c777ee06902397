"""What was found out about a model's folder, kept in a person's cache folder as long as no file of
the model, none of this package and no library changes. So who has seen a model once plans and ends
runs on it without loading what reads models.

Only answers are kept, never a refusal: what was wrong is looked at again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rayunlearn.config import digest
from rayunlearn.models.model_files import file_stamps
from rayunlearn.storage.artifact_cache import is_young
from rayunlearn.storage.code_identity import package_digest, version_of
from rayunlearn.storage.user_cache import answer_once, user_cache

# what reads a folder: configurations, tokenizers, chat templates, weights, adapters
FOLDER_LIBRARIES = ("jinja2", "peft", "safetensors", "tokenizers", "torch", "transformers")


def answer_of_folder(folder: Path, question: Sequence[object], answer: Callable[[], Any]) -> Any:
    """`answer()`, a JSON value, or what it gave an earlier process for the same folder and
    question.

    Args:
        folder: of a model; one whose files were written just now is asked anew.
        question: what else decides the answer, as JSON values; its first word names the asker.
        answer: works it out. What it raises is raised, and nothing is kept.
    """
    cache, stamps = user_cache("model_folders"), file_stamps(str(folder))
    if cache is None or not stamps or any(map(is_young, folder.iterdir())):
        return answer()
    libraries = [version_of(name) for name in FOLDER_LIBRARIES]
    key = digest([str(folder.resolve()), stamps, list(question), libraries, package_digest()])
    return answer_once(cache / f"{key}.json", answer)


def passes_once(folder: Path, question: Sequence[object], check: Callable[[], object]) -> None:
    """Run a check that raises where something is wrong, unless the folder has passed it before."""

    def passed() -> bool:
        check()
        return True

    answer_of_folder(folder, question, passed)
