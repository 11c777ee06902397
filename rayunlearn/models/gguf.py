"""A GGUF file, the format of llama.cpp, to a model directory as `save_pretrained` writes it.

transformers reads the file. Four things are put right here that it leaves:

- It marks what it read as quantised with GGUF, and so refuses to save it, though every weight has
  been widened by then. The weights go into a new model of the same shape, whose configuration says
  nothing of GGUF.
- Numbers of the file are float32 and come out as `9.999999747378752e-06`: the shortest decimal
  that is the same float32 is written.
- It does not know that some byte-level tokenizers split every digit off (`tokenizer.ggml.pre`).
- It names a model by the title in the file; a directory has no need of one.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from rayunlearn.errors import UserError, one_line, require
from rayunlearn.lazy import np, torch, transformers
from rayunlearn.models.load import JSON_NOTES, quiet_transformers, save_model, set_padding
from rayunlearn.storage.artifact_cache import file_digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MAGIC = b"GGUF"
# What a damaged or foreign file makes the readers raise; struct and index errors where it is cut.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    OverflowError,
    MemoryError,
    struct.error,
)
# Pre-tokenizers that split off every digit and then split as GPT-2 does (llama.cpp,
# src/llama-vocab.cpp); the reader of transformers splits as GPT-2 alone.
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
# GPT-2's own way, which the reader takes for every byte-level tokenizer that it does not know.
AS_GPT2 = ("", "default", "gpt-2", "mpt", "olmo", "jais", "trillion")
NO_LICENCE = "none named in the file; ask whoever gave it to you"


@dataclass(frozen=True)
class Conversion:
    """What was read. `n_weights` maps a GGUF type (`Q4_1`) to the number of weights
    that the file had in it; `notes` say what may differ from the model that was quantised.
    """

    file: str
    file_sha256: str
    architecture: str
    licence: str
    n_weights: Mapping[str, int]
    end_of_turn: str
    has_chat_template: bool
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The same as text, a line for each."""
        template = "a chat template" if self.has_chat_template else "no chat template"
        return [
            f"read: {self.architecture}, SHA-256 {self.file_sha256}",
            f"licence: {self.licence}",
            f"precision: {precision_words(self.n_weights)}",
            f"tokenizer: ends a turn with {self.end_of_turn}, {template}",
            *(f"note: {note}" for note in self.notes),
        ]


def convert_gguf(file: Path, directory: Path) -> Conversion:
    """Write the model in `file` to the new `directory`: float32 safetensors, configuration,
    tokenizer, and `provenance.json` with what is returned.

    Raises UserError for a file that is not there or no GGUF file, for an architecture or tokenizer
    that transformers cannot read, for a directory that exists or cannot be written, and without the
    package gguf.
    """
    require(file.is_file(), "a GGUF file must be a file that exists", str(file))
    require(_starts_as_gguf(file), "a GGUF file must begin with the bytes 'GGUF'", str(file))
    require(not directory.exists(), "the directory must not exist yet", str(directory))
    if find_spec("gguf") is None:
        raise UserError("to convert a GGUF file needs gguf: pip install 'rayunlearn[gguf]'")
    try:
        # a progress bar of the reader is no bar of transformers, and writes over ours
        with _parsed_once(), quiet_transformers(), redirect_stderr(StringIO()):
            fields, n_weights = _read_header(file)
            model, tokenizer = _read_model(file)
    except UNREADABLE as problem:
        raise UserError(
            f"transformers cannot read {file}: {type(problem).__name__}: {one_line(str(problem))}"
        ) from problem
    set_padding(model, tokenizer, file)
    about = Conversion(
        file=file.name,
        file_sha256=file_digest(file),
        architecture=type(model).__name__,
        licence=_licence_of(fields),
        n_weights=n_weights,
        end_of_turn=str(tokenizer.eos_token),
        has_chat_template=bool(tokenizer.chat_template),
        notes=_split_digits(tokenizer, str(fields.get("tokenizer.ggml.pre", ""))),
    )
    note = json.dumps({"converted_from_gguf": asdict(about)}, indent=1, ensure_ascii=False)
    try:
        save_model(model, tokenizer, directory, notes={"provenance.json": note + "\n"})
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{directory} cannot be written: {one_line(str(problem))}") from problem
    return about


def precision_words(n_weights: Mapping[str, int]) -> str:
    """How many bits the weights had in the file, most frequent first, and what became of them."""
    bits: Counter[int] = Counter()
    for name, count in n_weights.items():
        bits[_bits_of(name)] += count
    shares = ", ".join(f"{count:,} of {width} bits" for width, count in bits.most_common())
    if min(bits) >= 32:
        return f"{shares}, kept"
    if min(bits) >= 16:
        return f"{shares}, widened to float32"
    return f"{shares}, widened to float32: what rounding to {min(bits)} bits lost is not there"


def _bits_of(name: str) -> int:
    """Bits of a weight by the name of its type: 4 for Q4_1 (scales not counted), 16 for BF16."""
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else 0


def _starts_as_gguf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


@contextmanager
def _parsed_once() -> Iterator[None]:
    """The library gguf with a reader that parses a file once, and names that are made once for a
    shape: transformers asks for each of them again and again, for half of a conversion's time.
    """
    import gguf

    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    parsed = lru_cache(maxsize=1)(reader)
    cached = {
        "GGUFReader": lambda path: parsed(str(path)),
        "get_tensor_name_map": lru_cache(maxsize=1)(name_map),
    }
    vars(gguf).update(cached)
    try:
        yield
    finally:
        vars(gguf).update(GGUFReader=reader, get_tensor_name_map=name_map)


def _read_header(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The fields of the file that are single values, and its weights by type."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    # arrays (the vocabulary) are read by transformers
    single = {
        name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1
    }
    counts: Counter[str] = Counter()
    for tensor in reader.tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
    return single, dict(counts)


def _read_model(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model, in float32 and free of what marks it as quantised, and tokenizer."""
    place = {"gguf_file": file.name, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **place)
    config = transformers.AutoConfig.from_pretrained(file.parent, **place)
    read, report = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent,
        **place,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    missing = sorted(report["missing_keys"])
    require(not missing, f"a model must be whole; {len(missing)} tensors are missing", missing[:5])
    return _without_quantization(read, config), tokenizer


def _without_quantization(read: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """A model of the same shape with the weights of `read` themselves, not copies."""
    settings = {name: part for name, part in config.to_dict().items() if name not in JSON_NOTES}
    plain = type(config).from_dict(_shortest_floats(settings))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(plain, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model.eval()


def _shortest_floats(value: Any) -> Any:
    """`value` with every number that is exactly a float32 as the shortest decimal of it."""
    if isinstance(value, dict):
        return {name: _shortest_floats(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shortest_floats(part) for part in value]
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _split_digits(tokenizer: PreTrainedTokenizerBase, kind: str) -> tuple[str, ...]:
    """Make a byte-level tokenizer split text as the file says; a note where that is not known."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    backend = tokenizer.backend_tokenizer
    if "ByteLevel" not in repr(backend.pre_tokenizer):
        return ()
    if kind in DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        return ()
    if kind in (*AS_GPT2, *GGUF_PRE_TOKENIZER_SPLITS):
        return ()
    return (f"text is split as GPT-2 does, as {kind!r} is not known: token ids may differ",)


def _licence_of(fields: Mapping[str, Any]) -> str:
    named = [fields.get(f"general.license{part}") for part in ("", ".name", ".link")]
    return ", ".join(str(part) for part in named if part) or NO_LICENCE
