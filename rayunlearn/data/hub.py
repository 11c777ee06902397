"""A name in `data.path` or `model.name`: something on this machine, or something on the Hugging Face Hub."""

import re
from pathlib import Path

from rayunlearn.errors import require

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


def is_local(name: str) -> bool:
    """Whether something lies at `name` on this machine."""
    return Path(name).expanduser().exists()


def means_a_path(name: str) -> bool:
    """Whether `name` can only be a path, there or not: it starts like one."""
    return name.startswith((".", "/", "~"))


def hub_name(name: str, rule: str) -> tuple[str, str | None]:
    """(repository, revision or None) of `owner/name` or `owner/name@revision`. Raises UserError with `rule` for anything else."""
    require(bool(HUB_NAME.fullmatch(name)), rule, name)
    repository, _, revision = name.partition("@")
    return repository, revision or None
