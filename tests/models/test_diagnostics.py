"""Changes of weights, separation of activations and G-effect: cases worked by hand."""

import pytest
import torch
from transformers import PreTrainedModel

from rayunlearn.models import diagnostics
from rayunlearn.models.diagnostics import (
    activation_separation,
    block_changes,
    gradient_effects,
    spectral_norm,
)
from tests.families import FAMILIES, toy_model


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_change_of_rank_one_has_its_own_norm_and_stable_rank_one() -> None:
    """W + u v' with |u| = 3 and |v| = 2: Frobenius and spectral norm 6, stable rank 1; relative
    change 6 / ||W of the block||. The other block is what it was.
    """
    model = toy_model("llama")
    base, block = weights_of(model), model.model.layers[1]
    length = sum(float(p.detach().double().square().sum()) for p in block.parameters()) ** 0.5
    with torch.no_grad():
        matrix = block.mlp.up_proj.weight
        u, v = torch.zeros(matrix.shape[0]), torch.zeros(matrix.shape[1])
        u[3], v[5] = 3.0, 2.0
        matrix += torch.outer(u, v)
    first, second = block_changes(model, base)
    assert (first.relative_change, first.spectral_norm, first.stable_rank) == (0.0, 0.0, None)
    assert second.spectral_norm == pytest.approx(6.0, rel=1e-5)
    assert second.stable_rank == pytest.approx(1.0, rel=1e-5)
    assert second.relative_change == pytest.approx(6 / length, rel=1e-5)


def test_two_matrices_of_a_block_stand_beside_each_other() -> None:
    """Rank-one changes of norm 6 and 3 in two matrices: largest singular value 6, stable rank
    (36 + 9) / 36; a vector's change counts to the relative change alone.
    """
    model = toy_model("llama")
    base, block = weights_of(model), model.model.layers[0]
    with torch.no_grad():
        block.mlp.up_proj.weight[0, 0] += 6
        block.self_attn.q_proj.weight[2, 3] += 3
        block.input_layernorm.weight[0] += 100
    change = block_changes(model, base)[0]
    assert change.spectral_norm == pytest.approx(6.0, rel=1e-4)
    assert change.stable_rank == pytest.approx(45 / 36, rel=1e-4)
    assert change.relative_change > 1


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_has_a_change_per_block(family: str) -> None:
    model = toy_model(family)
    base = weights_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    for change in block_changes(model, base):
        assert change.relative_change == pytest.approx(0.5, rel=1e-5)
        assert change.stable_rank is not None and change.stable_rank >= 1 - 1e-9


@pytest.mark.parametrize("exact_size", [512, 1])
def test_the_spectral_norm_is_the_largest_singular_value(
    exact_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By eigenvalues and by iteration, tall and wide; of zeros it is 0."""
    monkeypatch.setattr(diagnostics, "EXACT_SIZE", exact_size)
    for shape in ((9, 4), (4, 9), (1, 5)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        expected = float(torch.linalg.svdvals(matrix.double())[0])
        assert spectral_norm(matrix) == pytest.approx(expected, rel=1e-5)
    assert spectral_norm(torch.zeros(3, 4)) == 0


def test_separation_is_the_distance_of_centres_in_units_of_spread() -> None:
    """Block 0: centres (0, 0) and (3, 4), 5 apart; forget at (+-1, 0) has variance 2, retain at
    (3, 4 +- 2) has 8, mean 5: 5 / sqrt 5. Block 1: both sets the same, 0.
    """
    forget = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[-1.0, 0.0], [2.0, 2.0]]])
    retain = torch.tensor([[[3.0, 6.0], [1.0, 1.0]], [[3.0, 2.0], [2.0, 2.0]]])
    assert activation_separation(forget, retain).tolist() == pytest.approx([5**0.5, 0.0])


def test_the_g_effect_says_what_a_small_step_down_the_objective_does() -> None:
    """R(w - h grad L) - R(w) is -h <grad R, grad L> for small h: central differences of the NLL of
    a retain and of a forget text along the gradient of the objective, in float64. Gradient ascent
    on the forget text: the product with its own NLL is -||g||^2, the cosine -1.
    """
    model = toy_model("llama").double()
    forget, retain = torch.tensor([1, 5, 9, 3, 2]), torch.tensor([1, 7, 4, 8, 2])

    def risk(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids[None]).logits[0]
        return torch.nn.functional.cross_entropy(logits[:-1], ids[1:])

    parameters = list(model.parameters())
    found = gradient_effects(
        -risk(forget), {"forget": risk(forget), "retain": risk(retain)}, parameters
    )
    ascent = torch.autograd.grad(-risk(forget), parameters, allow_unused=True)
    length = sum(float(g.square().sum()) for g in ascent if g is not None)
    assert found["forget"].product == pytest.approx(-length, rel=1e-6)
    assert found["forget"].cosine == pytest.approx(-1.0, rel=1e-6)
    step = 1e-4 / length**0.5

    def moved(by: float) -> dict[str, float]:
        with torch.no_grad():
            for parameter, gradient in zip(parameters, ascent, strict=True):
                if gradient is not None:
                    parameter -= by * gradient
            values = {"forget": float(risk(forget)), "retain": float(risk(retain))}
            for parameter, gradient in zip(parameters, ascent, strict=True):
                if gradient is not None:
                    parameter += by * gradient
        return values

    ahead, behind = moved(step), moved(-step)
    for name, effect in found.items():
        slope = (ahead[name] - behind[name]) / (2 * step)
        assert -effect.product == pytest.approx(slope, rel=1e-3)
