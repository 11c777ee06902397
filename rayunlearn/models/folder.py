"""What a model folder is, from its files alone: no weights are read into memory and nothing that
the folder brings is executed.

`inspect_model_folder` says it; `check_model` says in one line what keeps a model from being used,
and everything that takes a model asks it before anything is scheduled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.data.tokenize import chat_template_fault, require_chat_template
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import transformers
from rayunlearn.models.folder_answers import answer_of_folder, passes_once
from rayunlearn.models.model_files import (
    adapter_of,
    check_architecture,
    check_directory,
    check_settings_files,
    file_stamps,
    model_config,
    number_types,
    quantization_of,
    read_settings,
    refuse_adapter,
    resolve_model,
    weight_files,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# how safetensors calls the number types that weights are trained in
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# long enough that a tokenizer that drops merges at random (BPE dropout) shows it
SAMPLE = (
    "The quick brown fox jumps over the lazy dog, and nobody remembers why it ever did so. " * 4
)
SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model as its folder describes it.

    `architecture`: the class that config.json names; `dtype`: of most weights, as torch calls it;
    `n_positions`: the context length in tokens, None where positions have no end; `n_embeddings`:
    rows of the embedding, one per token id; `outside`: tokens (id) that the tokenizer writes and
    the embedding does not have, the padding token apart, since batches are padded with id 0;
    `special_tokens`: the tokenizer's, by role; `has_chat_template`, and `chat_fault`: what keeps it
    from writing a question and an answer, '' for nothing; `varies`: whether the tokenizer gives the
    same text other ids from call to call; `quantization`: by what the weights are quantised, '' for
    nothing; `adapter`: the model that an adapter in the folder belongs to, '' without one;
    `missing`: files that a model needs and the folder has not.
    """

    path: Path
    architecture: str
    dtype: str
    n_positions: int | None
    n_embeddings: int
    outside: Mapping[str, int]
    special_tokens: Mapping[str, int]
    has_chat_template: bool
    chat_fault: str
    varies: bool
    quantization: str
    adapter: str
    missing: tuple[str, ...]


def inspect_model_folder(path: str | Path) -> ModelFolder:
    """What the folder is; the same answer as long as no file of it changes.

    The chat template is rendered in a process of its own (`data.chat_sandbox`). Raises UserError
    where there is no folder, config.json is missing, deeper than 50 levels or larger than 64 MiB,
    describes no causal language model, or the tokenizer cannot be read.
    """
    return _described(Path(path).expanduser().resolve(), file_stamps(str(path)))


@lru_cache(maxsize=16)
def _described(directory: Path, _stamps: tuple[object, ...]) -> ModelFolder:
    described = answer_of_folder(directory, ["inspect"], partial(_described_as_json, directory))
    return ModelFolder(**described | {"path": directory, "missing": tuple(described["missing"])})


def _described_as_json(directory: Path) -> dict[str, Any]:
    return asdict(_inspected(directory)) | {"path": str(directory)}


def _inspected(directory: Path) -> ModelFolder:
    config = read_settings(directory)
    check_architecture(directory)
    text = model_config(directory).get_text_config()
    tokenizer = read_tokenizer(directory)
    words = tokenizer.get_vocab()
    rows = int(getattr(text, "vocab_size", 0) or 0)
    named = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "unk", "pad")}
    outside = {word: i for word, i in words.items() if i >= rows and i != tokenizer.pad_token_id}
    return ModelFolder(
        path=directory,
        architecture=str(config["architectures"][0]),
        dtype=stored_dtype(directory),
        n_positions=context_length(text),
        n_embeddings=rows,
        outside=outside,
        special_tokens={role: i for role, i in named.items() if i is not None},
        has_chat_template=bool(tokenizer.chat_template),
        chat_fault=chat_template_fault(tokenizer) if tokenizer.chat_template else "",
        varies=_varies(tokenizer),
        quantization=quantization_of(directory, config),
        adapter=adapter_of(directory),
        missing=_missing_files(directory),
    )


def check_model(name: str, *, setting: str, template: str = "", max_tokens: int = 0) -> ModelFolder:
    """The folder of the model `name`, which `setting` (`model.name`, ...) gives, for texts of at
    most `max_tokens` in `template`.

    Raises UserError, one line with the rule and the value, for whatever keeps the model from being
    loaded, trained and measured so.
    """
    directory = resolve_model(name)
    passes_once(directory, ["directory"], partial(check_directory, directory))
    refuse_adapter(directory)
    folder = inspect_model_folder(directory)
    n_rows = folder.n_embeddings
    require(
        not folder.outside,
        f"{setting} must have an embedding for every token id, {directory} has {n_rows}; beyond"
        f" them are {len(folder.outside)} tokens, such as",
        dict(sorted(folder.outside.items(), key=lambda item: item[1])[:3]),
    )
    require(
        not folder.varies,
        f"{setting} must give a text the same token ids at every call; of {directory} they differ"
        " (dropout in tokenizer.json)",
        f"other ids in {SAMPLES} calls",
    )
    if template == "chat":
        require_chat_template(folder.has_chat_template, str(directory))
        rule = f"the chat template of {directory} must take a question and an answer"
        if folder.chat_fault:
            raise UserError(f"{rule}: {folder.chat_fault}")
    require_positions(max_tokens, folder.n_positions, str(directory))
    return folder


def require_positions(max_tokens: int, n_positions: int | None, model: str) -> None:
    """Raise UserError where texts of `max_tokens` are longer than a model's context."""
    require(
        n_positions is None or max_tokens <= n_positions,
        f"data.max_tokens must be <= {n_positions}, the positions of {model}",
        max_tokens,
    )


def context_length(config: PretrainedConfig) -> int | None:
    """Positions that a model of this configuration was made for, the stretching of rotary ones
    counted; None where it names no end (ALiBi, state spaces).
    """
    text = config.get_text_config()
    listed = getattr(text, "max_position_embeddings", None)
    if not isinstance(listed, int) or listed <= 0:
        return None
    rotary = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in rotary.values() if isinstance(value, dict)]
    return max([listed, *(_stretched(listed, kind) for kind in nested or [rotary])])


def _stretched(listed: int, rotary: Mapping[str, Any]) -> int:
    """`linear` and `dynamic` stretch the length that is listed, YaRN the one that it names."""
    original = rotary.get("original_max_position_embeddings") or listed
    kinds = ("linear", "dynamic", "yarn")
    factor = rotary.get("factor") if rotary.get("rope_type") in kinds else 1
    return int(original * (factor or 1))


def read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, without code that it brings. Raises UserError where it cannot be
    read.
    """
    check_settings_files(directory)
    try:
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False
        )
        return tokenizer
    # the tokenizers library raises a bare Exception for a file that it cannot parse
    except Exception as problem:
        raise UserError(
            f"the tokenizer in {directory} could not be loaded: {type(problem).__name__}:"
            f" {' '.join(str(problem).split())}"
        ) from problem


def _varies(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text has other ids from call to call."""
    ids = {tuple(tokenizer.encode(SAMPLE, add_special_tokens=False)) for _ in range(SAMPLES)}
    return len(ids) > 1


def stored_dtype(directory: Path) -> str:
    """The float type that most tensors of the weights have, as torch calls it; '' where no weights
    can be read.
    """
    kinds = [kind for kind in number_types(directory) if kind in FLOATS]
    return FLOATS[Counter(kinds).most_common(1)[0][0]] if kinds else ""


def _missing_files(directory: Path) -> tuple[str, ...]:
    weights = weight_files(directory) or [directory / "model.safetensors"]
    return tuple(file.name for file in weights if not file.is_file())
