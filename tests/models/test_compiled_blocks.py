"""Compiled blocks give the numbers of their own code, whatever the batch, and leave no trace."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.config import Trial, with_values
from rayunlearn.data.tokenize import Encoded, collate
from rayunlearn.errors import UserError
from rayunlearn.models import compiled_blocks as module
from rayunlearn.models.compiled_blocks import compiled_blocks
from rayunlearn.models.forward import can_pack, hidden_states, token_nll
from tests.tiny_models import SEQUENCES, tiny_model

HAS_COMPILER = any(map(shutil.which, module.COMPILERS))
LONGER = [Encoded("d", tuple(range(2, 22)), 7), Encoded("e", (1, 5, 2), 1)]


def gradients(model: PreTrainedModel, *, states: bool) -> list[Tensor]:
    """Of two batches of unlike lengths, one after the other."""
    model.train().zero_grad(set_to_none=True)
    for sequences in (SEQUENCES, LONGER):
        batch = collate(sequences)
        loss = (
            (hidden_states(model, batch, 1) * batch.present[..., None]).square().sum()
            if states
            else token_nll(model, batch).sum()
        )
        loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


# torch looks at it while it captures, and hides the warning where warnings are no errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("states", [False, True])
def test_what_is_captured_computes_the_same_losses_of_labels_and_of_states(
    states: bool, tmp_path: Path
) -> None:
    """The graphs run as they are captured: nothing is compiled to machine code."""
    model = tiny_model()
    can_pack(model)
    plain = gradients(model, states=states)
    with compiled_blocks(model, tmp_path, backend="eager"):
        captured = gradients(model, states=states)
    again = gradients(model, states=states)
    assert len(plain) == len(captured) > 5
    for own, graph, after in zip(plain, captured, again, strict=True):
        assert torch.allclose(own, graph, rtol=1e-5, atol=1e-6) and torch.equal(own, after)
    assert not any("forward" in block.__dict__ for block in model.model.layers)


MACHINE_CODE = """
import sys
from pathlib import Path
import torch
from tests.models.test_compiled_blocks import compiled_blocks, gradients, tiny_model
from rayunlearn.models.forward import can_pack
torch.set_num_threads(1)
model = tiny_model()
can_pack(model)
plain = gradients(model, states=False)
with compiled_blocks(model, Path(sys.argv[1])):
    fast = gradients(model, states=False)
from torch._dynamo.utils import counters
print(max(float((a - b).abs().max()) for a, b in zip(plain, fast, strict=True)))
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler on this machine")
def test_machine_code_agrees_and_a_second_process_finds_it_compiled(tmp_path: Path) -> None:
    environment = {n: v for n, v in os.environ.items() if n != module.CACHE_VARIABLE}
    counts = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", MACHINE_CODE, str(tmp_path)],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        difference, hits, misses = done.stdout.split()[-3:]
        assert float(difference) < 1e-4
        counts.append((int(hits), int(misses)))
    assert counts[0][1] > 0 and counts[1] == (counts[0][0] + counts[0][1], 0)


def test_it_is_refused_without_a_compiler_and_where_blocks_are_not_their_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for values in ({"train.adapter": "lora"}, {"train.checkpoint_activations": True}):
        with pytest.raises(UserError, match=r"train\.compile must be false with an adapter"):
            with_values(Trial(), {"train.compile": True, **values})
    monkeypatch.setattr(module.shutil, "which", lambda _name: None)
    monkeypatch.delenv("CXX", raising=False)
    with (
        pytest.raises(UserError, match=r"train\.compile needs a C\+\+ compiler"),
        compiled_blocks(tiny_model(), tmp_path),
    ):
        pass
