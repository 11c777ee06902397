"""A name in `data.path` or `model.name`: something on this machine, or something on the Hugging
Face Hub.
"""

import re
from pathlib import Path

from rayunlearn.errors import UserError, require

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
DATA_FILES = ["*.json", "*.jsonl", "*.csv", "*.parquet", "*.txt"]


def is_local(name: str) -> bool:
    """Whether something lies at `name` on this machine."""
    return Path(name).expanduser().exists()


def means_a_path(name: str) -> bool:
    """Whether `name` can only be a path, there or not: it starts like one."""
    return name.startswith((".", "/", "~"))


def hub_name(name: str, rule: str) -> tuple[str, str | None]:
    """(repository, revision or None) of `owner/name` or `owner/name@revision`. Raises UserError
    with `rule` for anything else.
    """
    require(bool(HUB_NAME.fullmatch(name)), rule, name)
    repository, _, revision = name.partition("@")
    return repository, revision or None


def folder_of(place: str) -> Path:
    """The folder at `place`, or a data set of the Hub (`owner/name[@revision]`) brought into the
    Hub cache: data files, no code.

    Raises UserError, saying what was tried, for anything else.
    """
    if is_local(place) or means_a_path(place):
        return Path(place).expanduser()
    repository, revision = hub_name(
        place, "a benchmark's data must be a directory on this machine or a Hub name (owner/name)"
    )
    # only a Hub name needs it
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository, repo_type="dataset", revision=revision, allow_patterns=DATA_FILES
            )
        )
    except (OSError, ValueError) as problem:
        raise UserError(
            f"{place!r} is no directory here, so it was looked up on the Hub:"
            f" {type(problem).__name__}: {problem}"
        ) from problem
