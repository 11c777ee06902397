"""What a model folder is, from its files: every fault ends in one line, and nothing of the folder
is loaded or run.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, LlamaConfig, MptConfig, PreTrainedTokenizerFast

from rayunlearn.data import chat_sandbox
from rayunlearn.errors import UserError
from rayunlearn.models.folder import check_model, context_length, inspect_model_folder
from rayunlearn.models.load import load_model, save_model
from rayunlearn.models.scratch import build_tokenizer
from tests.tiny_models import tiny_model

CHAT = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {{ eos_token }}{% endfor %}"
TEXT = "the cat sat on the mat and looked at the other one"


def tokenizer() -> PreTrainedTokenizerFast:
    """Four special tokens and the words of a sentence."""
    return build_tokenizer([TEXT])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama of 64 positions, 37 rows in its embedding and a chat template."""
    words = tokenizer()
    words.chat_template = CHAT
    return save_model(tiny_model(), words, tmp_path / "model")


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def set_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


def test_a_folder_says_what_it_is(folder: Path) -> None:
    found = inspect_model_folder(folder)
    assert (found.architecture, found.dtype) == ("LlamaForCausalLM", "float32")
    assert (found.n_positions, found.n_embeddings) == (64, 37)
    assert found.special_tokens == {"bos": 1, "eos": 2, "unk": 3, "pad": 0}
    assert found.has_chat_template and found.chat_fault == ""
    assert (found.quantization, found.adapter, found.missing) == ("", "", ())
    assert not found.outside and not found.varies
    check_model(str(folder), setting="model.name", template="chat", max_tokens=64)


def test_half_precision_is_read_off_the_weights(tmp_path: Path) -> None:
    saved = save_model(tiny_model().bfloat16(), tokenizer(), tmp_path / "half")
    assert inspect_model_folder(saved).dtype == "bfloat16"


# ---- context


def test_more_tokens_than_positions_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"data.max_tokens must be <= 64, the positions of .*65$"):
        check_model(str(folder), setting="model.name", max_tokens=65)


def test_the_context_is_what_positions_and_their_stretching_give() -> None:
    """YaRN and linear scaling by 4 stretch 128 positions to 512; GPT-2 calls them n_positions;
    ALiBi has no end.
    """
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    linear = {"rope_type": "linear", "factor": 4.0}
    stretched = [
        LlamaConfig(max_position_embeddings=128, rope_parameters=kind | {"rope_theta": 1e4})
        for kind in (yarn, linear)
    ]
    assert [context_length(config) for config in stretched] == [512, 512]
    assert context_length(LlamaConfig(max_position_embeddings=128)) == 128
    assert context_length(GPT2Config(n_positions=256)) == 256
    assert context_length(MptConfig()) is None


# ---- chat templates


def test_a_missing_chat_template_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    bare = str(save_model(tiny_model(), tokenizer(), tmp_path / "bare"))
    check_model(bare, setting="model.name")
    with pytest.raises(UserError, match="needs a tokenizer with a chat template"):
        check_model(bare, setting="model.name", template="chat")


HOSTILE = {
    "loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "must end within 1 seconds of CPU",
    ),
    "computes for ever": ("{{ 9**(9**9) }}", "must end within 1 seconds of CPU"),
    "fills memory": ("{{ 'x' * 10**10 }}", "must take at most 1 GiB|must end within"),
    "writes much": ("{{ 'x' * 10**6 }}", "at most 100000 characters, got 1000000"),
    "reaches into Python": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "reads a file": ("{% include '/etc/passwd' %}", "TypeError|TemplateNotFound"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "is no template": ("{% for m in %}", "TemplateSyntaxError"),
    "draws": ("{{ range(9999) | random }}", "the same text at every call"),
    "refuses": ("{{ raise_exception('no such roles') }}", "no such roles"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_chat_template_ends_in_one_line(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, message = HOSTILE[kind]
    # two of them use up all that there is
    assert chat_sandbox.CPU_SECONDS == 5
    monkeypatch.setattr(chat_sandbox, "CPU_SECONDS", 1)
    set_template(folder, template)
    began = time.monotonic()
    with pytest.raises(UserError, match=message) as refused:
        check_model(str(folder), setting="model.name", template="chat")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    assert "must take a question and an answer" in str(refused.value)
    assert time.monotonic() - began < 60


def test_a_hostile_template_that_nobody_asks_for_keeps_no_model_from_use(folder: Path) -> None:
    set_template(folder, "{{ raise_exception('no such roles') }}")
    assert check_model(str(folder), setting="model.name").chat_fault


def test_a_template_that_asks_for_the_day_is_told_the_same_one_always(folder: Path) -> None:
    from rayunlearn.data.tokenize import prompt_text

    today = "{{ strftime_now('%d %b %Y') }}, {{ strftime_now(\"%Y/%m\") }}"
    set_template(folder, "\n" + today + CHAT)
    check_model(str(folder), setting="model.name", template="chat")
    text = prompt_text("the cat", load_model(str(folder))[1], "chat")
    assert text == "\n26 Jul 2024, 2024/07<user> the cat </s>"


# ---- weights that are no plain weights


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "compressed-tensors", "torchao", "bitsandbytes", "fp8"]
)
def test_a_quantised_checkpoint_is_refused_by_its_method(folder: Path, method: str) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": method, "bits": 4})
    assert inspect_model_folder(folder).quantization == method
    for refuse in REFUSALS:
        with pytest.raises(UserError, match=f"not quantised.*got '{method}'$"):
            refuse(str(folder))


REFUSALS: tuple[Callable[[str], object], ...] = (
    lambda name: check_model(name, setting="model.name"),
    load_model,
)


def test_packed_weights_without_a_word_in_the_config_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    packed = weights | {name: torch.zeros(weights[name].shape, dtype=torch.int8)}
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not quantised.*got 'weights of I8'"):
        check_model(str(folder), setting="model.name")


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_refused_with_the_model_it_belongs_to(folder: Path, whole: bool) -> None:
    edit(folder / "adapter_config.json", base_model_name_or_path="someone/base", peft_type="LORA")
    if not whole:
        (folder / "config.json").unlink()
    with pytest.raises(UserError, match="its adapter merged into it.*got 'someone/base'"):
        check_model(str(folder), setting="model.name")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_when_they_are_loaded(
    folder: Path, value: float
) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"finite.*1 tensors, got \['model.layers.1.mlp.up_proj"):
        load_model(str(folder))


def test_finite_weights_whose_sum_is_not_are_taken(tmp_path: Path) -> None:
    model = tiny_model()
    model.model.norm.weight.data.fill_(3e38)
    saved = save_model(model, tokenizer(), tmp_path / "large")
    assert load_model(str(saved))[0].model.norm.weight[0].item() == pytest.approx(3e38)


# ---- vocabulary


def test_a_token_beyond_the_embedding_is_refused(folder: Path) -> None:
    words = load_model(str(folder))[1]
    words.add_tokens([f"<more{n}>" for n in range(40)])
    words.save_pretrained(folder)
    with pytest.raises(UserError, match=r"an embedding for every token id.* has 37; .*<more"):
        check_model(str(folder), setting="model.gold")


def test_a_padding_token_beyond_the_embedding_is_never_looked_up(tmp_path: Path) -> None:
    model, words = tiny_model(), tokenizer()
    model.resize_token_embeddings(len(words))
    words.add_special_tokens({"pad_token": "<padding>"})
    saved = str(save_model(model, words, tmp_path / "padded"))
    assert check_model(saved, setting="model.name").special_tokens["pad"] == len(words) - 1


def test_a_tokenizer_that_splits_at_random_is_refused(tmp_path: Path) -> None:
    """BPE dropout, as it may stay in tokenizer.json after training."""
    from tests.tokenizer_kinds import KINDS

    words = KINDS["gpt2"].build()
    saved = save_model(tiny_model(), words, tmp_path / "dropout")
    edit(saved / "config.json", vocab_size=len(words))
    file = saved / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["dropout"] = 0.5
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the same token ids at every call"):
        check_model(str(saved), setting="model.name")


# ---- settings


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("depth", [200, 100_000])
def test_settings_of_any_depth_end_in_one_line(folder: Path, file: str, depth: int) -> None:
    text = (folder / file).read_text().rstrip()
    nested = '{"a":' * depth + "1" + "}" * depth
    (folder / file).write_text(f'{text[:-1]}, "deep": {nested}}}')
    for refuse in REFUSALS:
        with pytest.raises(UserError, match=f"{file} must be at most 50 levels deep"):
            refuse(str(folder))


def test_a_huge_config_is_refused_unread(folder: Path) -> None:
    with (folder / "config.json").open("a") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(UserError, match="config.json must have <= 67108864 bytes, got 68157440"):
        check_model(str(folder), setting="model.name")


def test_more_blocks_than_the_weights_have_tensors_are_refused_at_once(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=200_000)
    began = time.monotonic()
    with pytest.raises(UserError, match="more blocks than the weights have tensors.*got 200000"):
        check_model(str(folder), setting="model.name")
    assert time.monotonic() - began < 5


def test_a_config_that_its_class_refuses_ends_in_one_line(folder: Path) -> None:
    edit(folder / "config.json", rms_norm_eps="small")
    for refuse in REFUSALS:
        with pytest.raises(UserError, match="could not be loaded: Strict.*rms_norm_eps") as no:
            refuse(str(folder))
        assert "\n" not in str(no.value)


def test_a_tokenizer_file_of_any_depth_ends_in_one_line(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(UserError, match="tokenizer .* could not be loaded"):
        check_model(str(folder), setting="model.name")
