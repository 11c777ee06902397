"""LoRA: trained beside the weights, saved alone, added to them, taken off; and what a trial may not
combine.
"""

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from rayunlearn.config import Trial, with_values
from rayunlearn.data.tokenize import collate
from rayunlearn.errors import UserError
from rayunlearn.models.forward import token_nll
from rayunlearn.models.load import save_model
from rayunlearn.models.matrices import TensorState, share_touched, tensor_states
from rayunlearn.models.scratch import build_tokenizer
from rayunlearn.registry import check_trial
from rayunlearn.train.adapters import LEAST_ADAPTED, lora, none, with_adapter
from rayunlearn.train.loop import OptimizerSettings, TrainedParameters, TrainLog, optimise
from rayunlearn.train.step import StepLoss
from rayunlearn.trial.workspace import validate_trial
from tests.families import FAMILIES, toy_model
from tests.tiny_models import CONFIGS, SEQUENCES, tiny_model

# families that keep most weights in one tensor for all experts, or that peft has a rule against
REFUSED = {
    "mixtral": "must reach 50% of the weights that train.parameters names; MixtralForCausalLM",
    "qwen2_moe": "must reach 50% .* Qwen2MoeForCausalLM .* reached, got '4",
    "mamba": "cannot be put into MambaForCausalLM",
}
BATCH = collate(SEQUENCES)


def train(model: torch.nn.Module, folder: Path, pattern: str = ".*", rank: int = 2) -> TrainLog:
    with with_adapter(model, partial(lora, rank=rank), pattern, folder) as parameters:
        return optimise(
            model,
            lambda _s: StepLoss(token_nll(model, BATCH).sum()),
            steps=4,
            optimizer=OptimizerSettings(learning_rate=1e-3),
            trained=TrainedParameters(pattern=parameters),
        )


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_an_adapted_model_learns_and_is_plain_again_with_the_adapter_added(
    family: str, tmp_path: Path
) -> None:
    model, names = tiny_model(family), list(tiny_model(family).state_dict())
    log = train(model, tmp_path / "adapter")
    assert log.rows[-1].loss < log.rows[0].loss
    assert list(model.state_dict()) == names and not hasattr(model, "peft_config")
    changed = [
        n
        for n, t in model.state_dict().items()
        if not torch.equal(t, tiny_model(family).state_dict()[n])
    ]
    assert changed and all("layers" in n and n.endswith("weight") for n in changed)


def values_of(model: PreTrainedModel) -> dict[str, TensorState]:
    """What the tensors hold, whatever wrote it."""
    return {name: replace(state, n_writes=0) for name, state in tensor_states(model).items()}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REFUSED])
def test_lora_reaches_the_matrices_of_every_family(family: str, tmp_path: Path) -> None:
    model, before = toy_model(family), values_of(toy_model(family))
    train(model, tmp_path / "adapter")
    assert share_touched(before, values_of(model)) >= LEAST_ADAPTED


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_lora_cannot_adapt_is_refused_on_the_driver(
    family: str, tmp_path: Path
) -> None:
    """No weights are loaded for it. Attention alone, where named, is adapted."""
    tokenizer = build_tokenizer(["a b c"])
    save_model(toy_model(family, len(tokenizer)), tokenizer, tmp_path / family)
    trial = with_values(
        Trial(),
        {
            # the positions of the toy models
            "data.max_tokens": 128,
            "model.name": str(tmp_path / family),
            "model.teach": False,
            "method.layer": 1,
            "train.adapter": "lora",
        },
    )
    with pytest.raises(UserError, match=REFUSED[family]):
        validate_trial(trial)
    if family != "mamba":
        validate_trial(with_values(trial, {"train.parameters": "self_attn"}))


def test_lora_that_matches_nothing_is_refused_on_the_driver() -> None:
    trial = with_values(Trial(), {"train.adapter": "lora", "train.parameters": "down_porj"})
    with pytest.raises(UserError, match="must match a linear module of a block"):
        validate_trial(trial)


def test_the_saved_adapter_is_small_and_gives_the_same_model_through_peft(tmp_path: Path) -> None:
    model = tiny_model()
    train(model, tmp_path / "adapter")
    assert {f.name for f in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "adapter"]
    # peft asks transformers for an attribute that the latter has renamed
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    torch.testing.assert_close(
        token_nll(loaded.base_model.model, BATCH), token_nll(model, BATCH), rtol=1e-5, atol=1e-5
    )


def test_the_pattern_chooses_the_modules_that_are_adapted(tmp_path: Path) -> None:
    """Width 16 to 24 and back, rank 2: down_proj of one block has 2 x (24 + 16) = 80 adapter
    weights.
    """
    assert train(tiny_model(), tmp_path / "a", r"layers\.1\..*down_proj").parameters_trained == 80
    with pytest.raises(
        UserError,
        match=(
            r"train\.parameters must match a linear module of a block when train\.adapter is lora,"
            r" got 'down_porj'"
        ),
    ):
        train(tiny_model(), tmp_path / "b", "down_porj")


def test_an_exception_takes_the_adapter_off_and_writes_nothing(tmp_path: Path) -> None:
    model, start = tiny_model(), tiny_model().state_dict()
    with pytest.raises(ZeroDivisionError), with_adapter(model, lora, ".*", tmp_path / "adapter"):
        raise ZeroDivisionError
    assert all(torch.equal(t, start[n]) for n, t in model.state_dict().items()) and not any(
        tmp_path.iterdir()
    )


def test_without_an_adapter_the_pattern_is_the_trials_own(tmp_path: Path) -> None:
    with with_adapter(tiny_model(), none, "down_proj", tmp_path / "adapter") as parameters:
        assert parameters == "down_proj"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train.adapter": "lorra"}, r"unknown train\.adapter 'lorra'; did you mean 'lora'\?"),
        ({"method.wrappers": "sam,bal"}, r"unknown method\.wrappers 'bal'; did you mean 'ball'\?"),
        (
            {"method.wrappers": "sam,sam"},
            r"method\.wrappers must name each wrapper once, got 'sam,sam'",
        ),
        (
            {"method.forget": "task_vector"},
            r"method\.retain must be 'none' with task_vector, .*, got 'nll'",
        ),
        (
            {"method.forget": "task_vector", "method.retain": "none", "train.adapter": "lora"},
            r"train\.adapter must be 'none' with task_vector",
        ),
        (
            {"method.wrappers": "ball", "train.adapter": "lora"},
            r"train\.adapter must be 'none' with the wrapper ball",
        ),
        ({"lora.rank": 0}, r"lora\.rank must be >= 1, got 0"),
        ({"sam.radius": 0.0}, r"sam\.radius must be > 0, got 0\.0"),
        ({"train.accumulation": 3}, r"train\.accumulation must divide train\.batch_size 8, got 3"),
        ({"train.precision": "float16"}, r"unknown train\.precision 'float16'"),
        (
            {"method.preferred": "refusals"},
            r"unknown method\.preferred 'refusals'; did you mean 'refusal'\?",
        ),
        ({"token.keep": 0.0}, r"token\.keep must be in \(0, 1\], got 0\.0"),
        ({"token.temperature": 0.0}, r"token\.temperature must be > 0, got 0\.0"),
        ({"token.cap": -1.0}, r"token\.cap must be >= 0, got -1\.0"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_trial(with_values(Trial(), values))


def test_options_follow_what_is_chosen() -> None:
    chosen = check_trial(
        with_values(
            Trial(),
            {
                "method.forget": "dpo",
                "method.preferred": "alternate",
                "method.wrappers": "sam",
                "train.adapter": "lora",
            },
        )
    )
    names = {name.partition(".")[0] for name, _ in chosen.options}
    assert {"dpo", "alternate", "sam", "lora"} <= names and not {
        "refusal",
        "ball",
        "average",
        "npo",
    } & names
    assert "dual.limit" in dict(check_trial(with_values(Trial(), {"method.forget": "pdu"})).options)
