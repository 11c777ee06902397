"""Weight attacks on random models: closed forms, hand-worked rows, and what an attack must not
touch.
"""

import copy
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rayunlearn.attacks import quantization
from rayunlearn.attacks.base import ATTACK_INPUTS, ATTACK_KINDS
from rayunlearn.attacks.perturbation import (
    direction_ablation,
    magnitude_pruning,
    mean_outputs,
    remove_direction,
    weight_noise,
)
from rayunlearn.attacks.quantization import (
    four_bit_normal_float,
    round_to_nearest,
    round_weights,
)
from rayunlearn.attacks.relearning import draw_documents, relearning
from rayunlearn.attacks.table import ATTACKS
from rayunlearn.data.synthetic import BIOGRAPHY, SCIENCE
from rayunlearn.data.tokenize import collate
from rayunlearn.data.unrelated_text import unrelated_documents, unrelated_texts
from rayunlearn.errors import UserError
from rayunlearn.metrics.forward_passes import Probe
from rayunlearn.models.forward import blocks, token_nll
from rayunlearn.models.nf4 import nf4_rounded, require_nf4
from tests.tiny_models import SEQUENCES, tiny_model

PROBES = [Probe(s.doc_id, "forget", s, ()) for s in SEQUENCES]


def weights_of(model: PreTrainedModel) -> list[Tensor]:
    return [
        m.weight.data.clone()
        for block in blocks(model)
        for m in block.modules()
        if isinstance(m, nn.Linear)
    ]


def nll(model: PreTrainedModel, at: int) -> float:
    with torch.no_grad():
        return float(token_nll(model, collate([SEQUENCES[at]])).sum())


def never_stop(_step: int) -> bool:
    return True


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_asks_for_what_there_is_and_names_a_kind_and_a_control_that_exist(
    name: str,
) -> None:
    row = ATTACKS[name]
    assert set(row.inputs) <= set(ATTACK_INPUTS)
    assert row.kind in ATTACK_KINDS
    assert not row.companion or row.companion in ATTACKS
    assert not row.trains or {"learning_rate", "steps"} <= set(row.function.__kwdefaults__)


def test_rounding_a_row_by_hand() -> None:
    """3 bits: levels -3..3, scale max|w| / 3. Row 1: scale 0.1, so 0.16 -> 0.2 and -0.04 -> 0; row
    2: scale 1; row 3 stays zero.
    """
    weight = torch.tensor([[0.3, 0.16, -0.04], [-3.0, 1.4, 2.6], [0.0, 0.0, 0.0]])
    assert torch.allclose(
        round_weights(weight, 3),
        torch.tensor([[0.3, 0.2, 0.0], [-3.0, 1.0, 3.0], [0.0, 0.0, 0.0]]),
        atol=1e-6,
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_quantising_moves_no_weight_by_more_than_half_a_step_and_leaves_embeddings_alone(
    bits: int,
) -> None:
    model = tiny_model()
    before, embeddings = weights_of(model), model.get_input_embeddings().weight.clone()
    round_to_nearest(model, bits=bits)
    for old, new in zip(before, weights_of(model), strict=True):
        step = old.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert bool(((new - old).abs() <= step * 0.5001).all())
        assert not torch.equal(old, new)
        assert max(len(row.unique()) for row in new) <= 2**bits - 1
    assert torch.equal(embeddings, model.get_input_embeddings().weight)


# appendix E of QLoRA, 2305.14314
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def nf4_by_definition(weight: Tensor) -> Tensor:
    """Every weight by itself: its block's largest |w| times the nearest of the sixteen levels."""
    flat, levels = weight.flatten().tolist(), []
    for start in range(0, len(flat), 64):
        largest = max(map(abs, flat[start : start + 64]))
        for w in flat[start : start + 64]:
            levels.append(min(NF4_LEVELS, key=lambda level: abs(level * largest - w)) * largest)
    return torch.tensor(levels).view_as(weight)


# wide rows, the tiny synthetic dataset's, rows of 16 (which bitsandbytes itself gets wrong on some
# processors), and a last block that is not full
@pytest.mark.parametrize("shape", [(6, 256), (3, 64), (4, 96), (16, 16), (5, 9)])
def test_nf4_is_the_nearest_of_sixteen_levels_of_a_block_of_64(shape: tuple[int, int]) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(shape)
    found = nf4_rounded(weight, bitsandbytes)
    assert torch.allclose(found, nf4_by_definition(weight), atol=1e-6)


@pytest.mark.parametrize("width", [64, 1], ids=["compiled for this processor", "plain torch"])
def test_both_ways_of_the_library_fit_the_bound_of_nf4(width: int) -> None:
    """bitsandbytes has compiled code for rows of even width, and takes torch's operations for odd
    ones: one column.
    """
    bitsandbytes = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(8, 64)
    packed, state = bitsandbytes.quantize_4bit(weight.view(-1, width), quant_type="nf4")
    with torch.compiler.set_stance("force_eager"):
        found = bitsandbytes.dequantize_4bit(packed, state).view(8, 64)
    require_nf4(weight, found)
    assert torch.allclose(found, nf4_by_definition(weight), atol=1e-6)


def test_nf4_changes_the_linear_weights_of_the_blocks_alone() -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny_model()
    before, embeddings = weights_of(model), model.get_input_embeddings().weight.clone()
    four_bit_normal_float(model)
    for old, new in zip(before, weights_of(model), strict=True):
        assert torch.allclose(new, nf4_by_definition(old), atol=1e-6)
    assert torch.equal(embeddings, model.get_input_embeddings().weight)


@pytest.mark.parametrize("fault", ["another block's scale", "no number"])
def test_what_does_not_fit_nf4_is_refused(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the library that quantises well and comes back with one wrong weight: of a
    block scaled by 1 the level -1 at the scale 0.7, or NaN.
    """

    def quantize_4bit(
        weight: Tensor, *, blocksize: int, quant_type: str
    ) -> tuple[Tensor, tuple[int, str]]:
        return weight, (blocksize, quant_type)

    def dequantize_4bit(weight: Tensor, state: tuple[int, str]) -> Tensor:
        assert state == (64, "nf4")
        found = nf4_by_definition(weight)
        at = weight.abs().argmax()
        found.view(-1)[at] *= 0.7 if fault == "another block's scale" else float("nan")
        return found

    stand_in = SimpleNamespace(quantize_4bit=quantize_4bit, dequantize_4bit=dequantize_4bit)
    monkeypatch.setattr(quantization, "_bitsandbytes", lambda: stand_in)
    with pytest.raises(
        UserError,
        match=r"what NF4 allows, weights moved by at most 0.152 of the largest .* got (0.3|nan)",
    ):
        four_bit_normal_float(tiny_model())


def test_pruning_takes_the_smallest_share_of_every_matrix() -> None:
    model = tiny_model()
    before = weights_of(model)
    magnitude_pruning(model, share=0.25)
    for old, new in zip(before, weights_of(model), strict=True):
        gone = new == 0
        assert int(gone.sum()) == old.numel() // 4
        assert old[gone].abs().max() <= old[~gone].abs().min()
        assert torch.equal(new[~gone], old[~gone])


def test_noise_has_the_asked_share_of_a_matrix_s_spread_and_repeats_by_seed() -> None:
    first, again, other = (tiny_model() for _ in range(3))
    before = weights_of(first)
    weight_noise(first, 0, relative=0.5)
    weight_noise(again, 0, relative=0.5)
    weight_noise(other, 1, relative=0.5)
    shares = torch.stack(
        [(new - old).std() / old.std() for old, new in zip(before, weights_of(first), strict=True)]
    )
    assert 0.45 < float(shares.mean()) < 0.55
    assert all(torch.equal(a, b) for a, b in zip(weights_of(first), weights_of(again), strict=True))
    assert not torch.equal(weights_of(first)[0], weights_of(other)[0])


def test_taking_a_direction_out_leaves_nothing_along_it() -> None:
    """(3, 4) less its part along (0, 2), which is (0, 4), is (3, 0)."""
    assert torch.equal(
        remove_direction(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 2.0])),
        torch.tensor([[3.0, 0.0]]),
    )
    assert torch.equal(
        remove_direction(torch.tensor([[3.0, 4.0]]), torch.zeros(2)), torch.tensor([[3.0, 4.0]])
    )


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi"])
def test_mean_outputs_are_the_library_s_hidden_states_before_the_labels(family: str) -> None:
    model = tiny_model(family)
    found = mean_outputs(model, SEQUENCES)
    rows: list[list[Tensor]] = [[] for _ in found]
    with torch.no_grad():
        for s in SEQUENCES:
            states = model(input_ids=torch.tensor([s.ids]), output_hidden_states=True).hidden_states
            # the library puts the final norm on the last one
            for layer in range(len(found) - 1):
                rows[layer] += [states[layer + 1][0, t - 1] for t in range(s.start, len(s.ids))]
    for layer in range(len(found) - 1):
        assert torch.allclose(found[layer], torch.stack(rows[layer]).mean(0), atol=1e-5)


def test_ablation_takes_out_the_way_from_base_and_ends_with_the_attack() -> None:
    base, model = tiny_model(), tiny_model()
    untouched = nll(base, 0)
    with ExitStack() as leaving:
        direction_ablation(base, copy.deepcopy(base), PROBES, leaving)
        assert nll(base, 0) == untouched
    weight_noise(model, 0, relative=1.0)
    way = mean_outputs(model, SEQUENCES)[0] - mean_outputs(base, SEQUENCES)[0]
    noisy = nll(model, 0)
    with ExitStack() as leaving:
        direction_ablation(model, base, PROBES, leaving)
        assert abs(float(mean_outputs(model, SEQUENCES)[0] @ way)) < 1e-4 * float(way.norm()) ** 2
        assert nll(model, 0) != noisy
    assert nll(model, 0) == noisy


def test_relearning_learns_the_documents_it_is_given_and_only_them_and_repeats() -> None:
    models = [tiny_model() for _ in range(3)]
    before = [nll(models[0], at) for at in range(3)]
    looked: list[int] = []

    def look(step: int) -> bool:
        looked.append(step)
        return True

    relearning(
        models[0], SEQUENCES, 0, look, documents=1, learning_rate=1e-2, steps=60, batch_size=2
    )
    relearning(
        models[1], SEQUENCES, 0, never_stop, documents=1, learning_rate=1e-2, steps=60, batch_size=2
    )
    relearning(
        models[2], SEQUENCES, 0, never_stop, documents=0, learning_rate=1e-2, steps=60, batch_size=2
    )
    assert nll(models[0], 0) < 0.1 * before[0]
    assert nll(models[0], 2) > 0.5 * before[2]
    assert nll(models[2], 2) < 0.5 * before[2]
    assert looked == list(range(1, 60))
    assert all(
        torch.equal(a, b) for a, b in zip(weights_of(models[0]), weights_of(models[1]), strict=True)
    )


def test_drawn_documents_are_the_same_n_at_every_larger_n() -> None:
    assert draw_documents(range(9), 1)[:4] == draw_documents(range(9), 1)[:6][:4]
    assert sorted(draw_documents(range(9), 1)) == list(range(9)) != draw_documents(range(9), 2)


def test_unrelated_text_repeats_has_no_copies_and_names_no_answer_of_a_test_bed() -> None:
    texts = [d.answer for d in unrelated_documents(200, 0)]
    assert (
        texts
        == [d.answer for d in unrelated_documents(200, 0)]
        != [d.answer for d in unrelated_documents(200, 1)]
    )
    assert len(set(texts)) == 200
    words = {word.strip(".,").lower() for text in texts for word in text.split()}
    answers = {value.lower() for attribute in (*SCIENCE, *BIOGRAPHY) for value in attribute.values}
    assert not words & answers
    assert words <= {
        word.strip(".,").lower() for text in unrelated_texts() for word in text.split()
    }
