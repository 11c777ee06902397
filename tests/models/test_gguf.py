"""A GGUF file to a model directory: the same function, weights as they were rounded, the tokenizer
that the file describes, and one line for what cannot be read.

The files are written here with llama.cpp's own package, from a random Llama of width 32.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rayunlearn.cli.main import main
from rayunlearn.errors import UserError
from rayunlearn.models.gguf import convert_gguf, precision_words
from rayunlearn.models.load import load_model, model_digest

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "a b", "1 2"]
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), *(pair.replace(" ", "") for pair in MERGES)]
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_llama() -> LlamaForCausalLM:
    """A Llama of two blocks, width 32, four heads of which two share keys and values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=len(TOKENS),
            rms_norm_eps=1e-5,
            initializer_range=0.2,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(shape).eval()


def pairs_of_rotation_apart(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """The rows of a query or key matrix as llama.cpp has them: the two rows that a rotary embedding
    turns together side by side, where transformers has them half a head apart.
    """
    heads = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, weight.shape[1])
    return heads.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    file: Path,
    model: LlamaForCausalLM,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
    licence: str = "apache-2.0",
    split: str = "smollm",
) -> Path:
    """The model as a GGUF file; matrices in `kind`, norms in float32 as llama.cpp keeps them."""
    config = model.config
    writer = GGUFWriter(file, architecture)
    if licence:
        writer.add_license(licence)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    write_tokenizer(writer, split)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        weight = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, n_heads in heads.items():
            weight = pairs_of_rotation_apart(weight, n_heads) if part in name else weight
        stored = kind if weight.ndim == 2 else GGMLQuantizationType.F32
        named = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(named, quantize(weight, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_tokenizer(writer: GGUFWriter, split: str) -> None:
    """Bytes and three merges; <|im_end|> ends a turn."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    # 3: a control token, 1: an ordinary one
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def rounded_to_four_bits(weight: torch.Tensor) -> torch.Tensor:
    """Q4_1 by its definition: of 32 numbers the least one m and a step d = (most - m) / 15, both
    float16; each number is m + d q with q from 0 to 15.
    """
    blocks = weight.reshape(-1, 32)
    least, most = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    step = (most - least) / 15
    counts = ((blocks - least) / step + 0.5).floor().clamp(0, 15)
    half = torch.float16
    return (counts * step.to(half).float() + least.to(half).float()).reshape(weight.shape)


IDS = torch.tensor([[5, 80, 17, 200, 33, 2, 90, 41]])


@torch.no_grad()
def logits(model: LlamaForCausalLM) -> torch.Tensor:
    return model(IDS).logits


def test_logits_of_the_directory_are_those_of_the_model_in_the_file(tmp_path: Path) -> None:
    original = tiny_llama()
    convert_gguf(write_gguf(tmp_path / "m.gguf", original), tmp_path / "out")
    model, _ = load_model(str(tmp_path / "out"))
    assert torch.allclose(logits(model), logits(original), atol=1e-5, rtol=0)
    assert logits(original).std() > 0.1


def test_four_bit_weights_come_out_as_they_were_rounded(tmp_path: Path) -> None:
    """The original with every matrix rounded by hand gives the same logits, and others than the
    original's own.
    """
    original = tiny_llama()
    file = write_gguf(tmp_path / "m.gguf", original, kind=GGMLQuantizationType.Q4_1)
    convert_gguf(file, tmp_path / "out")
    model, _ = load_model(str(tmp_path / "out"))
    exact = logits(original)
    with torch.no_grad():
        for parameter in original.parameters():
            if parameter.ndim == 2:
                parameter.copy_(rounded_to_four_bits(parameter))
    assert model.dtype == torch.float32
    assert torch.allclose(logits(model), logits(original), atol=1e-4, rtol=0)
    assert not torch.allclose(logits(model), exact, atol=1e-2)


def test_the_configuration_says_nothing_of_gguf_and_the_model_can_be_saved(tmp_path: Path) -> None:
    convert_gguf(write_gguf(tmp_path / "m.gguf", tiny_llama()), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and "gguf" not in json.dumps(config).lower()
    assert config["architectures"] == ["LlamaForCausalLM"]
    # 9.999999747378752e-06 in the file
    assert config["rms_norm_eps"] == 1e-5
    AutoModelForCausalLM.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")


def test_tokenizer_has_the_template_and_the_end_of_turn_of_the_file(tmp_path: Path) -> None:
    convert_gguf(write_gguf(tmp_path / "m.gguf", tiny_llama()), tmp_path / "out")
    _, tokenizer = load_model(str(tmp_path / "out"))
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "ab"}], tokenize=False, add_generation_prompt=True
    )
    assert said == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_ids_to_tokens(tokenizer(said)["input_ids"])[:2] == [SPECIAL[1], "u"]
    assert tokenizer("ab")["input_ids"] == [TOKENS.index("ab")]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id == 2


@pytest.mark.parametrize(
    ("split", "tokens"),
    [("smollm", ["a", "ĠĠ", "1", "2"]), ("gpt-2", ["a", "Ġ", "Ġ", "12"])],
)
def test_digits_are_split_off_where_the_file_says_so(
    tmp_path: Path, split: str, tokens: list[str]
) -> None:
    """llama.cpp splits at every digit first for `smollm`, so that blanks before one stay together;
    GPT-2 takes the last blank to the number and the digits together.
    """
    done = convert_gguf(write_gguf(tmp_path / "m.gguf", tiny_llama(), split=split), tmp_path / "o")
    _, tokenizer = load_model(str(tmp_path / "o"))
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12")["input_ids"]) == tokens
    assert done.notes == ()


def test_an_unknown_way_to_split_is_said(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), split="poro-chat")
    (note,) = convert_gguf(file, tmp_path / "out").notes
    assert "'poro-chat' is not known: token ids may differ" in note


def test_convert_says_digest_licence_and_widening(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), kind=GGMLQuantizationType.Q4_1)
    assert main(["convert", str(file), str(tmp_path / "out")]) == 0
    said, err = capsys.readouterr()
    assert f"digest {model_digest(str(tmp_path / 'out'))}" in said
    assert "licence: apache-2.0" in said
    # 8,384 in the embedding of 262 tokens and 2 blocks of 9,216; 5 norms of 32
    assert "26,816 of 4 bits, 160 of 32 bits, widened to float32" in said
    assert "what rounding to 4 bits lost is not there" in said
    assert err == ""
    about = json.loads((tmp_path / "out" / "provenance.json").read_text())["converted_from_gguf"]
    assert about["licence"] == "apache-2.0" and about["n_weights"] == {"Q4_1": 26816, "F32": 160}


def test_a_file_without_a_licence_says_so(tmp_path: Path) -> None:
    done = convert_gguf(write_gguf(tmp_path / "m.gguf", tiny_llama(), licence=""), tmp_path / "out")
    assert done.licence.startswith("none named in the file")


@pytest.mark.parametrize(
    ("n_weights", "words"),
    [
        ({"F32": 10}, "10 of 32 bits, kept"),
        ({"F32": 10, "BF16": 1000}, "1,000 of 16 bits, 10 of 32 bits, widened to float32"),
        ({"IQ2_XXS": 9, "Q8_0": 8}, "lost is not there"),
    ],
)
def test_precision_is_said_by_bits(n_weights: dict[str, int], words: str) -> None:
    assert precision_words(n_weights).endswith(words) or words in precision_words(n_weights)


def refused(file: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `convert` says; the directory is as it was."""
    before = directory.exists()
    assert main(["convert", str(file), str(directory)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and directory.exists() == before
    assert list(directory.parent.glob(".*.tmp")) == []
    return said


def test_what_is_no_gguf_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.gguf").write_text("not one")
    assert "must begin with the bytes 'GGUF'" in refused(
        tmp_path / "text.gguf", tmp_path / "out", capsys
    )
    assert "must be a file that exists" in refused(tmp_path / "no.gguf", tmp_path / "out", capsys)
    assert "must be a file that exists" in refused(tmp_path, tmp_path / "out", capsys)


@pytest.mark.parametrize("length", [4, 30, 2_000, 12_000, -100])
def test_a_file_that_is_cut_off_is_refused(
    tmp_path: Path, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_gguf(tmp_path / "m.gguf", tiny_llama()).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:length])
    assert "transformers cannot read" in refused(tmp_path / "cut.gguf", tmp_path / "out", capsys)


def test_an_existing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_llama())
    (tmp_path / "out").mkdir()
    assert "must not exist yet" in refused(file, tmp_path / "out", capsys)


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_llama())
    assert "cannot be written" in refused(file, file / "out", capsys)


@pytest.mark.parametrize("architecture", ["rwkv7", "t5"])
def test_an_architecture_that_transformers_cannot_read_is_refused(
    tmp_path: Path, architecture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """rwkv7 is unknown to the reader; t5 is read, and is no causal language model."""
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), architecture=architecture)
    assert "transformers cannot read" in refused(file, tmp_path / "out", capsys)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny_llama())
    monkeypatch.setattr("rayunlearn.models.gguf.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rayunlearn\[gguf\]'"):
        convert_gguf(file, tmp_path / "out")
