"""Models in and out: a Hugging Face directory or Hub name to (model, tokenizer), and back to a
directory.

Weights are read from safetensors only and code that a model brings is never run. A Hub name is
first brought into the local Hub cache and then treated like any directory, so both meet the same
checks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from rayunlearn.config import digest
from rayunlearn.data.hub import is_local
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import torch, transformers
from rayunlearn.models.folder import read_tokenizer
from rayunlearn.models.folder_answers import passes_once
from rayunlearn.models.forward import can_pack
from rayunlearn.models.model_files import (
    HUB_FILES,
    TEMPLATES,
    check_directory,
    file_stamps,
    model_config,
    read_config_json,
    refuse_adapter,
    resolve_model,
    weight_files,
)
from rayunlearn.storage.artifact_cache import apply_umask, file_digest, is_young, require_whole

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# What a model is, file by file: its weights and everything else that a loader of model or tokenizer
# may read. A file of an unknown name counts: a trial that runs once more costs less than a wrong
# number.
PARTS = (*HUB_FILES[1:], "*.bpe", "*.spm", "*.tiktoken", "adapter_model.safetensors")
# Notes of whoever wrote the folder, read by no loader.
NOT_LOADED = ("training.json", "provenance.json", "manifest.json", "trainer_state.json")
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "README", "USE_POLICY")
# Written by whoever saved the file, without effect on what the model computes.
JSON_NOTES = (
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "is_local",
    "local_files_only",
)
WITH_NOTES = ("config.json", "generation_config.json", "tokenizer_config.json")


def load_model(
    name: str, *, dtype: torch.dtype | None = None, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model and tokenizer in a local directory or under a Hub name
    (`owner/name[@revision]`).

    `dtype`: of the weights in memory; None: as they are stored. The weights go straight to
    `device`, in eval mode. A tokenizer without a padding token gets its end token, which is safe
    here because batches are masked by length and never by token. Raises UserError for a directory
    that is not there, has no safetensors weights, is not a causal language model or lacks tensors,
    for a Hub name that cannot be had, and for a folder of the cache that is not what was written.
    """
    directory = resolve_model(name)
    require_whole(directory)
    check_directory(directory)
    refuse_adapter(directory)
    model_config(directory)
    tokenizer = read_tokenizer(directory)
    try:
        with quiet_transformers():
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype or "auto",
                device_map={"": device},
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        raise UserError(
            f"the model in {directory} could not be loaded: {type(problem).__name__}: {problem}"
        ) from problem
    missing = sorted(report["missing_keys"])
    require(
        not missing,
        f"the weights in {directory} must have every tensor of the model; missing {len(missing)}",
        missing[:5],
    )
    _check_numbers(model, directory)
    set_padding(model, tokenizer, directory)
    # tried here, so that what is said of a family is said before anything is measured
    can_pack(model.eval())
    return model, tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model without the model. Raises UserError where the directory is no model
    or its tokenizer cannot be read.
    """
    directory = resolve_model(name)
    check_directory(directory)
    return read_tokenizer(directory)


def _check_numbers(model: PreTrainedModel, directory: Path) -> None:
    """Raise UserError where a weight is no finite number: every result would be none either."""
    broken = [name for name, weights in model.state_dict().items() if not _is_finite(weights)]
    require(
        not broken,
        f"the weights in {directory} must be finite numbers; NaN or infinity in {len(broken)}"
        " tensors",
        broken[:3],
    )


def _is_finite(weights: Tensor) -> bool:
    # one pass without a copy; a sum may leave the type's range where no weight does
    return bool(weights.sum().isfinite()) or bool(torch.isfinite(weights).all())


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write both as a Hugging Face directory that appears whole or not at all, with `notes` (file
    name -> text) in it.

    Raises FileExistsError if the directory exists.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists; a saved model is never overwritten")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        with quiet_transformers():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for file, text in (notes or {}).items():
            (temporary / file).write_text(text, encoding="utf-8")
        apply_umask(temporary)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


_KNOWN: dict[Path, tuple[tuple[object, ...], str]] = {}


def model_digest(name: str) -> str:
    """What the model is, for trial ids: for a directory 16 hex digits of a SHA-256 over every file
    that is loaded (weights, configuration, generation settings, the whole tokenizer, chat
    templates, adapters), without notes on versions; for a Hub name `owner/name@commit`.

    Reads the whole of the weights, once per process as long as no file of the directory changes,
    and writes nothing. Raises UserError as `load_model`.
    """
    directory = resolve_model(name)
    if not is_local(name):
        # the Hub cache names a snapshot's folder by its commit
        return f"{name.partition('@')[0]}@{directory.name}"
    stamps = file_stamps(name)
    if directory in _KNOWN and _KNOWN[directory][0] == stamps:
        return _KNOWN[directory][1]
    passes_once(directory, ["directory"], partial(check_directory, directory))
    content = digest(
        [[f.relative_to(directory).as_posix(), _content_of(f)] for f in loaded_files(directory)]
    )
    if stamps == file_stamps(name) and not any(is_young(f) for f in directory.iterdir()):
        _KNOWN[directory] = (stamps, content)
    return content


def loaded_files(directory: Path) -> list[Path]:
    """Every file of a model directory that loading the model or its tokenizer may read, sorted."""
    parts = {file for pattern in PARTS for file in directory.glob(pattern)}
    parts = {f for f in parts if f.name not in NOT_LOADED and f.stem.upper() not in LEGAL}
    return sorted({*parts, *directory.glob(TEMPLATES), *weight_files(directory)})


def _content_of(file: Path) -> str:
    """Digest of a file's bytes, or of the object in a JSON file that has notes, without them."""
    if file.name not in WITH_NOTES:
        return file_digest(file)
    content = read_config_json(file).items()
    return digest({key: value for key, value in content if key not in JSON_NOTES})


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars of transformers, which would break the live line of a run; put back
    afterwards.
    """
    progress_bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if progress_bars:
            transformers.utils.logging.enable_progress_bar()


def set_padding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Give tokenizer and model a padding token if they have none: the end token, else the unknown
    token.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    rule = f"the tokenizer in {directory} must have a padding, end or unknown token"
    require(tokenizer.pad_token is not None, rule, sorted(tokenizer.special_tokens_map))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
