"""Which modules have a fused form, and passes with them beside passes without."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayunlearn.data.tokenize import Encoded, collate
from rayunlearn.models import fused_layers as fused_layers_module
from rayunlearn.models import packed_attention
from rayunlearn.models.forward import blocks, can_pack, hidden_states, token_nll
from rayunlearn.models.fused_layers import fused_layers
from rayunlearn.models.logits import replaced_forwards
from tests.families import toy_model
from tests.tiny_models import SEQUENCES, tiny_model

# what each family is made of that has a fused form, in two blocks
ALL = {"norm": 5, "mlp": 2, "attention": 2}
FUSED = {
    "llama": ALL,
    "mistral": ALL,
    "qwen2": ALL,
    "granite": ALL,
    # its norms add one to their gains, its activation is a GELU
    "gemma": {"norm": 0, "mlp": 0, "attention": 2},
    # queries and keys are normed before they are rotated
    "qwen3": {"norm": 9, "mlp": 2, "attention": 0},
    "gpt_neox": {"norm": 0, "mlp": 0, "attention": 0},
}
LONG = [Encoded(s.doc_id, (*s.ids, *range(3, 23)), s.start) for s in SEQUENCES]


def replaced(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("family", FUSED)
def test_a_module_has_the_fused_form_where_it_computes_that(family: str) -> None:
    model = toy_model(family)
    with fused_layers(model):
        names = [type(module).__name__ for module in replaced(model)]
    counts = {kind: sum(n.lower().endswith(kind) for n in names) for kind in ALL}
    assert counts == FUSED[family] and sum(counts.values()) == len(names)
    assert not replaced(model)


def losses_and_gradients(model: PreTrainedModel) -> tuple[Tensor, list[Tensor]]:
    losses = token_nll(model, collate(LONG)).sum()
    return losses.detach(), list(torch.autograd.grad(losses, list(model.parameters())))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "granite"])
def test_a_pass_says_what_it_says_without_fused_forms(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses to 1e-6 and gradients to 1e-5."""
    model = toy_model(family)
    can_pack(model)
    with_forms, gradients = losses_and_gradients(model)
    monkeypatch.setattr(packed_attention, "fused_layers", lambda _model: nullcontext())
    monkeypatch.setattr(packed_attention, "_has_fused", lambda: False)
    without, expected = losses_and_gradients(model)
    torch.testing.assert_close(with_forms, without, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients, expected, strict=True):
        most = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * most)


def test_hooks_of_modules_and_of_their_projections_still_run() -> None:
    model = tiny_model()
    can_pack(model)
    seen: list[str] = []
    names = ("input_layernorm", "self_attn", "self_attn.k_proj", "mlp", "mlp.up_proj")
    for name in names:
        module = blocks(model)[1].get_submodule(name)
        module.register_forward_hook(lambda _m, _i, _o, name=name: seen.append(name))
    hidden_states(model, collate(SEQUENCES), 1)
    assert sorted(seen) == sorted(names)


def test_a_projection_that_was_replaced_is_called() -> None:
    """As adapters do, which come after a model has been tried."""
    model, batch = tiny_model(), collate(SEQUENCES)
    before = hidden_states(model, batch, 1)
    attention = blocks(model)[1].self_attn
    attention.v_proj = nn.Sequential(attention.v_proj, nn.Tanh())
    assert not torch.equal(hidden_states(model, batch, 1), before)


def test_a_module_that_something_else_runs_for_is_left_to_it() -> None:
    model = tiny_model()
    norm = blocks(model)[0].input_layernorm

    def other(states: Tensor) -> Tensor:
        return states

    with replaced_forwards([norm], other), fused_layers(model):
        assert norm.forward is other
        assert blocks(model)[0].post_attention_layernorm in replaced(model)


@pytest.mark.parametrize("lowered", ["weights", "products"])
def test_lower_precision_runs_as_the_library_has_it(lowered: str) -> None:
    model: Any = tiny_model()
    with fused_layers(model):
        assert replaced(model)
    if lowered == "weights":
        model.to(torch.bfloat16)
    products = torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered == "products")
    with products, fused_layers(model):
        assert not replaced(model)


def test_an_attention_with_dropout_stays_the_librarys() -> None:
    model = tiny_model()
    for block in blocks(model):
        block.self_attn.attention_dropout = 0.1
    with fused_layers(model):
        assert not any(block.self_attn in replaced(model) for block in blocks(model))
        assert blocks(model)[0].mlp in replaced(model)


def test_compiled_blocks_are_compiled_from_the_librarys_code() -> None:
    model = tiny_model()
    can_pack(model)
    seen: list[int] = []
    blocks(model)[0].mlp.register_forward_hook(lambda *_: seen.append(len(replaced(model))))
    with packed_attention.attention_outside_graphs():
        hidden_states(model, collate(SEQUENCES), 1)
    hidden_states(model, collate(SEQUENCES), 1)
    assert seen[0] == 0 and seen[1] > 0


def test_without_torchs_kernel_attention_runs_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(), collate(SEQUENCES)
    expected = hidden_states(model, batch, 2)
    packed_attention._has_fused.cache_clear()
    monkeypatch.setattr("rayunlearn.models.fused_functions.ATTENTION_KERNEL", "no_such_kernel")
    found = hidden_states(model, batch, 2)
    packed_attention._has_fused.cache_clear()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("error", "is_fused"), [(1e-7, True), (3e-6, True), (1e-3, False)])
def test_a_model_packs_with_the_librarys_layers_where_fused_ones_round_too_far(
    error: float, is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deep model enlarges the rounding of its fused layers. That is no reason to pad: packing is
    tried with the library's layers, and the fused ones stay where they are within 1e-4.
    """
    model = toy_model("llama")
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]

    def wrong_by(module: nn.Module) -> Any:
        own = module.forward
        return lambda states: own(states) * (1 + error)

    forms = [(module, wrong_by(module)) for module in norms]
    monkeypatch.setattr(fused_layers_module, "_fused_forwards", lambda _: forms)
    assert can_pack(model)
    with fused_layers(model):
        assert bool(replaced(model)) == is_fused
    assert not replaced(model)
