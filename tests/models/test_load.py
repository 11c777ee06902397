"""Models in and out: only whole, safe directories are loaded, and a digest says when the weights
are others.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rayunlearn.errors import UserError
from rayunlearn.models.load import load_model, model_digest, save_model

WORDS = {"<unk>": 0, "</s>": 1, "the": 2, "cat": 3}


def tiny(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """A two-block Llama of width 8, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = {
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 4,
            "pad_token_id": None,
        }
        return LlamaForCausalLM(LlamaConfig(**(shape | settings)))


def words(**special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of four words."""
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model directory as transformers writes it, whose tokenizer has an end token and no padding
    token.
    """
    return save_model(tiny(), words(eos_token="</s>"), tmp_path / "model")


def edit_config(directory: Path, **changes: object) -> None:
    """Change or (None) remove keys of config.json."""
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in changes or v is not None})
    )


def test_what_is_saved_loads_with_the_same_weights_in_eval_mode(saved: Path) -> None:
    model, tokenizer = load_model(str(saved))
    for name, weights in tiny().state_dict().items():
        assert torch.equal(weights, model.state_dict()[name]), name
    assert not model.training
    assert tokenizer("the cat")["input_ids"] == [2, 3]


def test_a_missing_padding_token_becomes_the_end_token_in_tokenizer_and_model(saved: Path) -> None:
    model, tokenizer = load_model(str(saved))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id == 1


def test_a_tokenizer_without_any_special_token_is_refused(tmp_path: Path) -> None:
    directory = save_model(
        tiny(), words(), tmp_path / "model", notes={"why.txt": "no special token"}
    )
    assert (directory / "why.txt").read_text() == "no special token"
    with pytest.raises(UserError, match="must have a padding, end or unknown token"):
        load_model(str(directory))


def test_the_number_type_of_the_weights_can_be_chosen(saved: Path) -> None:
    assert load_model(str(saved))[0].dtype == torch.float32
    assert load_model(str(saved), dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_saving_never_overwrites_and_leaves_nothing_half_written(
    saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileExistsError, match="never overwritten"):
        save_model(tiny(1), words(eos_token="</s>"), saved)

    class Broken:
        def save_pretrained(self, directory: Path) -> None:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_model(tiny(), Broken(), tmp_path / "other")  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_the_digest_knows_weights_shape_and_tokenizer_and_nothing_else(
    saved: Path, tmp_path: Path
) -> None:
    same = save_model(tiny(), words(eos_token="</s>"), tmp_path / "same")
    edit_config(same, transformers_version="9.9", _name_or_path="elsewhere")
    (same / "README.md").write_text("a note")
    others = [
        save_model(tiny(1), words(eos_token="</s>"), tmp_path / "seed"),
        save_model(tiny(), words(eos_token="</s>"), tmp_path / "shape"),
    ]
    edit_config(others[1], rms_norm_eps=1e-3)
    assert model_digest(str(saved)) == model_digest(str(same))
    assert len({model_digest(str(path)) for path in (saved, *others)}) == 3
    before = {file.name: file.stat().st_mtime_ns for file in saved.iterdir()}
    model_digest(str(saved))
    assert {file.name: file.stat().st_mtime_ns for file in saved.iterdir()} == before


OTHER_FILES = {
    "generation_config.json": '{"eos_token_id": [1, 3]}',
    "tokenizer_config.json": '{"eos_token": "</s>", "chat_template": "<<{{ messages }}>>"}',
    "special_tokens_map.json": '{"eos_token": "cat"}',
    "added_tokens.json": '{"<pad>": 4}',
    "chat_template.jinja": "<<{{ messages }}>>",
    "chat_template.json": '{"chat_template": "<<{{ messages }}>>"}',
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "tokenizer.model": "sentencepiece",
    "spiece.model": "sentencepiece",
    "vocab.json": '{"the": 0}',
    "vocab.txt": "the\n",
    "merges.txt": "t h\n",
    "adapter_config.json": '{"r": 8}',
    "adapter_model.safetensors": "weights",
    "a_tokenizer_of_next_year.json": "{}",
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_the_digest_knows_every_file_that_a_loader_reads(saved: Path, name: str) -> None:
    """Of these, only weights, config.json and tokenizer.json were in it: two models that read the
    same text as other tokens had one id.
    """
    before = model_digest(str(saved))
    (saved / name).parent.mkdir(exist_ok=True)
    (saved / name).write_text(OTHER_FILES[name])
    with_it = model_digest(str(saved))
    (saved / name).write_text(OTHER_FILES[name] + " ")
    is_json_with_notes = name in ("generation_config.json", "tokenizer_config.json")
    assert before != with_it
    assert (model_digest(str(saved)) == with_it) == is_json_with_notes


def test_a_setting_that_is_off_differs_from_one_that_is_not_there(saved: Path) -> None:
    """`sliding_window: null` attends to everything;
    a config without it takes the class's window.
    """
    before = model_digest(str(saved))
    edit = json.loads((saved / "config.json").read_text()) | {"sliding_window": None}
    (saved / "config.json").write_text(json.dumps(edit))
    assert model_digest(str(saved)) != before


def test_a_digest_is_read_once_as_long_as_no_file_changes(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = time.time() - 100
    monkeypatch.setattr("rayunlearn.storage.artifact_cache.YOUNG_SECONDS", -1.0)
    before, opened = model_digest(str(saved)), []
    monkeypatch.setattr(
        "rayunlearn.models.load.file_digest", lambda file: opened.append(file) or "another"
    )
    assert model_digest(str(saved)) == before and not opened
    os.utime(saved / "tokenizer.json", (long_ago, long_ago))
    assert model_digest(str(saved)) != before and opened


def test_a_digest_changes_with_one_bit_of_one_weight(saved: Path) -> None:
    before = model_digest(str(saved))
    weights = load_file(saved / "model.safetensors")
    first = sorted(weights)[0]
    weights[first].view(torch.int32).view(-1)[0] ^= 1
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    assert model_digest(str(saved)) != before


def test_shards_listed_in_an_index_load_and_a_missing_shard_is_named(saved: Path) -> None:
    whole = load_model(str(saved))[0].state_dict()
    weights = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    shards = {
        name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(weights)
    }
    for shard in set(shards.values()):
        save_file(
            {name: weights[name] for name, file in shards.items() if file == shard},
            saved / shard,
            metadata={"format": "pt"},
        )
    (saved / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": shards})
    )
    loaded = load_model(str(saved))[0].state_dict()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)
    (saved / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is listed"):
        load_model(str(saved))
    shards["lm_head.weight"] = "../elsewhere.safetensors"
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(UserError, match="must name files of its own directory"):
        load_model(str(saved))


def test_a_directory_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model.name must be a directory that exists, got"):
        load_model(str(tmp_path / "nowhere"))


def test_a_directory_without_weights_says_what_it_has(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    for call in (load_model, model_digest):
        with pytest.raises(
            UserError, match=r"must have weights \(model.safetensors\).*config.json.*tokenizer.json"
        ):
            call(str(saved))


def test_pickled_weights_are_refused_unread(saved: Path) -> None:
    class Explosive:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (saved / "executed",))

    (saved / "model.safetensors").unlink()
    torch.save(Explosive(), saved / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"only \['pytorch_model.bin'\].*convert them to safetensors"
    ):
        load_model(str(saved))
    assert not (saved / "executed").exists()


def test_a_truncated_weight_file_is_a_user_error(saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        load_model(str(saved))


def test_weights_that_lack_a_tensor_are_refused_instead_of_filled_at_random(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing 1, got \['model.layers.1.mlp.up_proj.weight'\]"):
        load_model(str(saved))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "must name its architecture"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            r"must be a causal language model .* got \['LlamaForSequenceClassification'\]",
        ),
        ({"model_type": "no_such_model"}, "could not be loaded: ValueError"),
        ({"num_hidden_layers": 3}, "missing 9"),
        ({"hidden_size": 16}, "could not be loaded: RuntimeError"),
    ],
)
def test_a_config_that_does_not_fit_is_a_user_error(
    saved: Path, changes: dict[str, object], message: str
) -> None:
    edit_config(saved, **changes)
    with pytest.raises(UserError, match=message):
        load_model(str(saved))


def test_a_config_that_is_not_json_is_a_user_error(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not readable JSON"):
        load_model(str(saved))


def test_code_that_a_model_brings_is_not_run(saved: Path) -> None:
    (saved / "evil.py").write_text(f"open({str(saved / 'executed')!r}, 'w')\nclass Evil: pass\n")
    edit_config(
        saved,
        model_type="evil",
        auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    )
    with pytest.raises(UserError, match="could not be loaded"):
        load_model(str(saved))
    assert not (saved / "executed").exists()


def test_an_unreachable_hub_says_what_was_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A port of this machine on which nothing listens stands for the missing network."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError,
        match=(
            "model.name 'someone/nothing-here' is no directory here, so it was looked up on the Hub"
        ),
    ):
        load_model("someone/nothing-here")
    with pytest.raises(UserError, match="must be 'scratch', a directory or a Hub name"):
        load_model("a b c")
