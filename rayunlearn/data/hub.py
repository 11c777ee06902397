"""A name in `data.path` or `model.name`: something on this machine, or something on the Hugging
Face Hub.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from rayunlearn.data.rows import SourceRow
from rayunlearn.errors import UserError, require

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
DATA_FILES = ["*.json", "*.jsonl", "*.csv", "*.tsv", "*.parquet", "*.txt", "*.gz"]


def is_local(name: str) -> bool:
    """Whether something lies at `name` on this machine."""
    return Path(name).expanduser().exists()


def looks_like_path(name: str) -> bool:
    """Whether `name` can only be a path, there or not: it starts like one."""
    return name.startswith((".", "/", "~"))


def hub_name(name: str, rule: str) -> tuple[str, str | None]:
    """(repository, revision or None) of `owner/name` or `owner/name@revision`. Raises UserError
    with `rule` for anything else.
    """
    require(bool(HUB_NAME.fullmatch(name)), rule, name)
    repository, _, revision = name.partition("@")
    return repository, revision or None


def folder_of(name: str) -> Path:
    """The folder at `place`, or a data set of the Hub (`owner/name[@revision]`) brought into the
    Hub cache: data files, no code.

    Raises UserError, saying what was tried, for anything else.
    """
    if is_local(name) or looks_like_path(name):
        return Path(name).expanduser()
    repository, revision = hub_name(
        name, "a benchmark's data must be a directory on this machine or a Hub name (owner/name)"
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
            f"{name!r} is no directory here, so it was looked up on the Hub:"
            f" {type(problem).__name__}: {problem}"
        ) from problem


# builders of `datasets` that only parse
HUB_FORMATS = ("csv", "json", "parquet", "arrow", "text")


def read_hub(path: str, name: str) -> Iterator[SourceRow]:
    """The rows of split `train` of configuration `name` of the Hub data set `path` (`owner/name`,
    `owner/name@revision`).

    Raises UserError, saying what was tried, when the Hub cannot be reached, does not have it, or
    holds another format.
    """
    # this and `datasets` take a second to import, and only a Hub name needs them
    import huggingface_hub

    repository, revision = hub_name(
        path,
        "data.path must be a directory, a file or a Hub name (owner/name): no such file or"
        " directory",
    )
    attempt = (
        f"data.path {path!r} is no file or directory here, so it was looked up on the Hub"
        f" (configuration {name!r}, split 'train')"
    )
    # one quick question first: `datasets` asks an unreachable Hub for half a minute
    try:
        huggingface_hub.HfApi().dataset_info(repository, revision=revision, timeout=20)
    except huggingface_hub.errors.OfflineModeIsEnabled:
        # HF_HUB_OFFLINE=1 means: from the local cache
        pass
    # the client's errors have no common base across its versions
    except Exception as problem:
        raise UserError(
            f"{attempt}: {type(problem).__name__}: {problem} (HF_HUB_OFFLINE=1 takes what is in the"
            " local cache)"
        ) from problem
    yield from read_dataset(repository, name, revision, attempt)


def read_dataset(
    repository: str, name: str, revision: str | None, attempt: str
) -> Iterator[SourceRow]:
    """The rows as `datasets` gives them. Only its parsing builders are let through: a data set
    brings no code here.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(repository, name, revision=revision)
        kind = type(builder).__module__.rpartition(".")[2]
        require(
            kind in HUB_FORMATS,
            f"{attempt}: its files must be one of {', '.join(HUB_FORMATS)}",
            kind,
        )
        builder.download_and_prepare()
        table = builder.as_dataset(split="train")
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as problem:
        raise UserError(f"{attempt}: {type(problem).__name__}: {problem}") from problem
    for number, values in enumerate(table):
        yield SourceRow(source=f"{repository}:{name}", row=number, values=values)
