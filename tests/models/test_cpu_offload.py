"""A model that is larger than its device answers as it does on one that holds it, and its blocks
are there only while they compute.
"""

import copy
from collections.abc import Iterator

import pytest
import torch

from rayunlearn.data.tokenize import collate
from rayunlearn.errors import UserError
from rayunlearn.models import cpu_offload
from rayunlearn.models.cpu_offload import is_offloaded, to_cpu, to_device_or_offload
from rayunlearn.models.forward import blocks, can_pack, hidden_states, token_nll
from rayunlearn.train.loop import OptimizerSettings, optimise
from rayunlearn.train.step import StepLoss
from tests.tiny_models import CONFIGS, SEQUENCES, tiny_model

CPU = torch.device("cpu")
BATCH = collate(SEQUENCES)


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """A device that no model fits on, in main memory:
    what is brought to it is a copy, and noted.
    """
    brought: list[torch.Tensor] = []

    def moved(data: torch.Tensor, _device: torch.device) -> torch.Tensor:
        brought.append(data.clone())
        return brought[-1]

    monkeypatch.setattr(cpu_offload, "weight_budget", lambda _device: 0)
    monkeypatch.setattr(cpu_offload, "move_tensors", moved)
    yield brought


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_it_answers_alike_and_each_block_comes_once_for_a_forward_pass(
    family: str, visits: list[torch.Tensor]
) -> None:
    model = tiny_model(family)
    expected = token_nll(model, BATCH)
    to_device_or_offload(model, CPU)
    homes = {id(p): p.data_ptr() for p in model.parameters()}
    assert is_offloaded(model) and torch.equal(token_nll(model, BATCH), expected)
    assert len(visits) == len([*blocks(model).parameters(), *blocks(model).buffers()])
    # everything is at home again
    assert {id(p): p.data_ptr() for p in model.parameters()} == homes
    written, plainly = (
        m.generate(BATCH.input_ids[:1, :2], max_new_tokens=3, do_sample=False)
        for m in (model, tiny_model(family))
    )
    assert torch.equal(written, plainly)


def test_a_block_is_there_alone_and_goes_home_when_the_pass_ends_early_or_fails(
    visits: list[torch.Tensor],
) -> None:
    model = to_device_or_offload(tiny_model(), CPU)
    # the first use tries the model as a whole
    assert can_pack(model)
    home = {id(p): p.data_ptr() for p in model.parameters()}
    away: list[set[int]] = []

    def note(*_: object) -> None:
        away.append(
            {
                n
                for n, block in enumerate(blocks(model))
                for p in block.parameters()
                if p.data_ptr() != home[id(p)]
            }
        )

    for block in blocks(model):
        block.mlp.register_forward_hook(note)
    assert torch.equal(hidden_states(model, BATCH, 0), hidden_states(tiny_model(), BATCH, 0))
    # nothing above it ran, and it was there alone
    assert away == [{0}]
    with pytest.raises(ZeroDivisionError):
        blocks(model)[1].mlp.register_forward_hook(lambda *_: 1 / 0)
        token_nll(model, BATCH)
    assert all(p.data_ptr() == home[id(p)] for p in model.parameters())


def test_weights_are_read_written_and_copied_at_home(visits: list[torch.Tensor]) -> None:
    model, other = to_device_or_offload(tiny_model(), CPU), tiny_model(seed=1)
    model.load_state_dict(other.state_dict())
    assert torch.equal(token_nll(model, BATCH), token_nll(other, BATCH))
    to_cpu(model)
    visits.clear()
    twin = copy.deepcopy(model)
    assert (
        not is_offloaded(model)
        and torch.equal(token_nll(twin, BATCH), token_nll(other, BATCH))
        and not visits
    )


def test_it_is_not_trained_whole(visits: list[torch.Tensor]) -> None:
    model = to_device_or_offload(tiny_model(), CPU)
    with pytest.raises(
        UserError,
        match=(
            "--processes-per-trial must be large enough to divide a model that is larger than its"
            " GPU, got 1"
        ),
    ):
        optimise(
            model,
            lambda _s: StepLoss(token_nll(model, BATCH).sum()),
            steps=1,
            optimizer=OptimizerSettings(learning_rate=1e-3),
        )


def test_a_model_that_fits_is_moved_whole() -> None:
    assert not is_offloaded(to_device_or_offload(tiny_model(), CPU))
