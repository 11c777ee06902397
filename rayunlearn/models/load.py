"""Models in and out: a Hugging Face directory or Hub name to (model, tokenizer), and back to a
directory.

Weights are read from safetensors only and code that a model brings is never run. A Hub name is
first brought into the local Hub cache and then treated like any directory, so both meet the same
checks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from rayunlearn.config import digest
from rayunlearn.data.hub import hub_name, is_local, looks_like_path
from rayunlearn.data.tokenize import check_chat_template
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import transformers
from rayunlearn.models.logits import can_split
from rayunlearn.storage.artifact_cache import (
    apply_umask,
    file_digest,
    is_young,
    require_whole,
    stamp_of,
)
from rayunlearn.storage.sync import fetch_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


INDEX = "model.safetensors.index.json"
PICKLE_FILES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]

# other people's layouts of the same weights
HUB_SKIPPED = ["*/*", "consolidated*"]

# What a model is, file by file: its weights and everything else that a loader of model or tokenizer
# may read. A file of an unknown name counts: a trial that runs once more costs less than a wrong
# number.
PARTS = (*HUB_FILES[1:], "*.bpe", "*.spm", "*.tiktoken", "adapter_model.safetensors")
TEMPLATES = "additional_chat_templates/*.jinja"
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
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                directory, trust_remote_code=False
            )
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
    set_padding(model, tokenizer, directory)
    # tried here, so that what is said of a family is said before anything is measured
    can_split(model.eval())
    return model, tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model without the model. Raises UserError where the directory is no model
    or its tokenizer cannot be read.
    """
    directory = resolve_model(name)
    check_directory(directory)
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as problem:
        raise UserError(
            f"the tokenizer in {directory} could not be loaded: {type(problem).__name__}: {problem}"
        ) from problem


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
    check_directory(directory)
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


def file_stamps(name: str) -> tuple[object, ...]:
    """What changes when a file of the model directory does, without reading any; empty where there
    is no directory, as for a Hub name.
    """
    directory = Path(name).expanduser()
    if not directory.is_dir():
        return ()
    files = sorted((*directory.glob("*"), *directory.glob(TEMPLATES)))
    return tuple((str(file), stamp_of(file)) for file in files if file.is_file())


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


def resolve_model(name: str) -> Path:
    """The directory of a model; a Hub name is downloaded to the Hub cache first (no code, no
    pickles).
    """
    local = Path(name).expanduser()
    if is_local(name) or looks_like_path(name):
        # of a run under a URL: trained on another machine
        fetch_folder(local)
        return local
    repository, revision = hub_name(
        name, "model.name must be 'scratch', a directory or a Hub name (owner/name)"
    )
    # only a Hub name needs it
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIPPED
            )
        )
    except (OSError, ValueError) as problem:
        attempt = f"model.name {name!r} is no directory here, so it was looked up on the Hub"
        raise UserError(f"{attempt}: {type(problem).__name__}: {problem}") from problem


def check_directory(directory: Path) -> None:
    """Raise UserError unless `directory` holds a causal language model with readable safetensors
    weights.
    """
    require(directory.is_dir(), "model.name must be a directory that exists", str(directory))
    files = sorted(file.name for file in directory.iterdir())
    require(
        (directory / "config.json").is_file(),
        f"a model directory must have config.json; {directory} has",
        files,
    )
    check_architecture(directory)
    weights = weight_files(directory)
    pickled = [file for file in files if file.endswith(PICKLE_FILES)]
    if not weights and pickled:
        raise UserError(
            f"weights must be safetensors; {directory} has only {pickled}, which can run code when"
            " read: convert them to safetensors"
        )
    require(
        bool(weights),
        f"a model directory must have weights (model.safetensors); {directory} has",
        files,
    )
    for file in weights:
        check_weights(file, files)


def check_architecture(directory: Path) -> None:
    """Raise UserError unless config.json names an architecture that predicts the next token."""
    config = read_config_json(directory / "config.json")
    named = config.get("architectures") or []
    require(
        bool(named),
        f"{directory / 'config.json'} must name its architecture, keys are",
        sorted(config),
    )
    table = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    architectures = {
        name for value in table.values() for name in ([value] if isinstance(value, str) else value)
    }
    require(
        any(name in architectures for name in named),
        "a model must be a causal language model that transformers knows",
        named,
    )


def check_weights(file: Path, files: list[str]) -> None:
    """Raise UserError unless `file` is there and is a whole safetensors file."""
    require(
        file.is_file(),
        f"{file.name} is listed in {INDEX} and must be in {file.parent}, which has",
        files,
    )
    try:
        with safe_open(file, framework="pt") as tensors:
            require(bool(list(tensors.keys())), "a weight file must have tensors", str(file))
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{file} is not a whole safetensors file: {problem}") from problem


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that transformers would read: the single file, or the shards that the
    index lists.
    """
    single = directory / "model.safetensors"
    if single.is_file() or not (directory / INDEX).is_file():
        return [single] if single.is_file() else []
    shards = read_config_json(directory / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{directory / INDEX} must have a weight_map, got {shards!r}")
    names = sorted({str(name) for name in shards.values()})
    require(
        all(Path(name).name == name for name in names),
        f"{directory / INDEX} must name files of its own directory",
        names,
    )
    return [directory / name for name in names]


def read_config_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError when it holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"{file} is not readable JSON: {problem}") from problem
    require(isinstance(content, dict), f"{file} must hold a JSON object", type(content).__name__)
    return dict(content)


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


def check_template(template: str, models: Sequence[str]) -> None:
    """Raise UserError where the template is `chat` and the tokenizer of one of the models (names,
    '' is none) has no chat template that takes a question and an answer.
    """
    if template != "chat":
        return
    require(
        "scratch" not in models,
        "data.template must not be 'chat' when model.name is 'scratch'",
        template,
    )
    for name in filter(None, models):
        _check_chat(name)


@lru_cache(maxsize=8)
def _check_chat(name: str) -> None:
    """`check_chat_template` of a model's tokenizer, read once per process."""
    check_chat_template(load_tokenizer(name))
