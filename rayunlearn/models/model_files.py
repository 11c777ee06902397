"""The files of a model folder: where they are, and which of them keep it from being used.

Nothing is loaded: config.json and the other settings are read as JSON, weights by their headers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from rayunlearn.data.hub import hub_name, is_local, looks_like_path
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import transformers
from rayunlearn.storage.artifact_cache import stamp_of
from rayunlearn.storage.sync import fetch_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INDEX = "model.safetensors.index.json"
PICKLE_FILES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TEMPLATES = "additional_chat_templates/*.jinja"
ADAPTER = "adapter_config.json"
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]

# other people's layouts of the same weights
HUB_SKIPPED = ["*/*", "consolidated*"]

# JSON files that transformers reads with Python's parser, which follows any depth until its stack
# ends
SETTINGS_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    ADAPTER,
    INDEX,
)
# the longest known are indexes of mixtures of experts: 9 MB
MOST_JSON_BYTES = 64 * 2**20
# the deepest known is 6
DEEPEST_JSON = 50

# a weight of these is packed or of 8 bits, and means nothing without its scales
PACKED = ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I32")


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
    """Raise UserError unless `directory` holds a whole causal language model with readable
    safetensors weights that are not quantised.
    """
    config = read_settings(directory)
    files = sorted(file.name for file in directory.iterdir())
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
    n_tensors = sum(check_weights(file, files) for file in weights)
    quantization = quantization_of(directory, config)
    require(
        not quantization,
        "a model must be stored in a float type, not quantised, to be trained and compared in"
        f" float32; {directory} is quantised",
        quantization,
    )
    n_blocks = config.get("num_hidden_layers")
    require(
        not isinstance(n_blocks, int) or n_blocks <= n_tensors,
        f"config.json must not name more blocks than the weights have tensors; {directory} has"
        f" {n_tensors} tensors, num_hidden_layers is",
        n_blocks,
    )


def read_settings(directory: Path) -> dict[str, Any]:
    """config.json, once it and the folder's other settings are known to be readable."""
    require(directory.is_dir(), "model.name must be a directory that exists", str(directory))
    files = sorted(file.name for file in directory.iterdir())
    if "config.json" not in files:
        refuse_adapter(directory)
    require(
        (directory / "config.json").is_file(),
        f"a model directory must have config.json; {directory} has",
        files,
    )
    check_settings_files(directory)
    return read_config_json(directory / "config.json")


def refuse_adapter(directory: Path) -> None:
    """Raise UserError where the folder has an adapter: transformers would load the model that its
    settings name, wherever that is, and put the adapter on it.
    """
    adapter = adapter_of(directory)
    require(
        not adapter,
        "a model must be whole, its adapter merged into it (peft's merge_and_unload);"
        f" {directory} has an adapter of",
        adapter,
    )


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


def check_weights(file: Path, files: list[str]) -> int:
    """Number of tensors in a weight file. Raises UserError unless `file` is there and is a whole
    safetensors file.
    """
    require(
        file.is_file(),
        f"{file.name} is listed in {INDEX} and must be in {file.parent}, which has",
        files,
    )
    try:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{file} is not a whole safetensors file: {problem}") from problem
    require(bool(names), "a weight file must have tensors", str(file))
    return len(names)


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
    """The object in a JSON file. Raises UserError when it holds none, or is larger than 64 MiB or
    deeper than 50 levels.
    """
    try:
        n_bytes = file.stat().st_size
        require(n_bytes <= MOST_JSON_BYTES, f"{file} must have <= {MOST_JSON_BYTES} bytes", n_bytes)
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as problem:
        raise UserError(f"{file} must be at most {DEEPEST_JSON} levels deep") from problem
    except UserError:
        raise
    except (OSError, ValueError) as problem:
        raise UserError(f"{file} is not readable JSON: {problem}") from problem
    require(isinstance(content, dict), f"{file} must hold a JSON object", type(content).__name__)
    depth = _depth(content)
    require(depth <= DEEPEST_JSON, f"{file} must be at most {DEEPEST_JSON} levels deep", depth)
    return dict(content)


def _depth(content: object) -> int:
    """Levels of lists and objects, one for an object without any."""
    level, depth = [content], 0
    while level := [part for part in level if isinstance(part, (list, dict))]:
        depth += 1
        level = [x for p in level for x in (p.values() if isinstance(p, dict) else p)]
    return depth


def model_config(directory: Path) -> PretrainedConfig:
    """config.json as transformers reads it. Raises UserError where it takes it for no model."""
    try:
        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(
            directory, trust_remote_code=False
        )
    # each class validates its own settings and raises what it likes
    except Exception as problem:
        raise UserError(
            f"the model in {directory} could not be loaded: {type(problem).__name__}:"
            f" {' '.join(str(problem).split())[:300]} (config.json)"
        ) from problem
    return config


def check_settings_files(directory: Path) -> None:
    """Raise UserError where a JSON file that transformers reads whole is too large or too deep."""
    for file in (directory / name for name in SETTINGS_FILES):
        if file.is_file():
            read_config_json(file)


def quantization_of(directory: Path, config: Mapping[str, Any]) -> str:
    """By what the weights of a folder are quantised: as config.json says, quantize_config.json of
    AutoGPTQ, or a packed number type of the weights; '' for nothing.
    """
    parts = [config, *(v for k, v in config.items() if k == "text_config" and isinstance(v, dict))]
    settings = [part.get("quantization_config") or part.get("compression_config") for part in parts]
    for section in filter(None, settings):
        method = section.get("quant_method") if isinstance(section, dict) else section
        return str(method or "quantization_config")
    if (directory / "quantize_config.json").is_file():
        return "quantize_config.json"
    packed = sorted({kind for kind in number_types(directory) if kind in PACKED})
    return f"weights of {', '.join(packed)}" if packed else ""


def adapter_of(directory: Path) -> str:
    """The model that an adapter in the folder belongs to, '' without an adapter."""
    if not (directory / ADAPTER).is_file():
        return ""
    return str(read_config_json(directory / ADAPTER).get("base_model_name_or_path") or ADAPTER)


def number_types(directory: Path) -> list[str]:
    """The number type, as safetensors calls it, of every tensor of weights, from the headers;
    nothing of files that cannot be read.
    """
    kinds: list[str] = []
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as tensors:
                names = [name for name in tensors.keys() if name.endswith("weight")]  # noqa: SIM118
                kinds += [str(tensors.get_slice(name).get_dtype()) for name in names]
        except (SafetensorError, OSError):
            continue
    return kinds


def file_stamps(name: str) -> tuple[object, ...]:
    """What changes when a file of the model directory does, without reading any; empty where there
    is no directory, as for a Hub name.
    """
    directory = Path(name).expanduser()
    if not directory.is_dir():
        return ()
    files = sorted((*directory.glob("*"), *directory.glob(TEMPLATES)))
    return tuple((str(file), stamp_of(file)) for file in files if file.is_file())
