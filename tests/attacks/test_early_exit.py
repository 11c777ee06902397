"""The last blocks left out: a fit worked by hand, brute force over blocks, and base as it was
however the model is bent.
"""

from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pytest
import torch

from rayunlearn.attacks.early_exit import linear_shortcut, ridge_fit
from rayunlearn.config import Trial, Value, with_values
from rayunlearn.data.tokenize import collate
from rayunlearn.errors import UserError
from rayunlearn.models.forward import normed_states, token_nll
from rayunlearn.storage.run import open_run
from rayunlearn.trial import model_state
from rayunlearn.trial.attack import run_attack_or_trial
from rayunlearn.trial.workspace import validate_trial, workspace_of
from tests.conftest import Bed
from tests.tiny_models import SEQUENCES, tiny_model


def test_a_map_of_one_number_by_hand() -> None:
    """early -1, 0, 1 and late -2, 1, 6: late - early is -1, 1, 5, mean 5/3; slope of it (1 + 5) /
    (2 + penalty 1) = 2, so A = 3 and b = 5/3.
    """
    weight, bias = ridge_fit(
        torch.tensor([[-1.0], [0.0], [1.0]]).double(),
        torch.tensor([[-2.0], [1.0], [6.0]]).double(),
        1.0,
    )
    assert weight.item() == pytest.approx(3) and bias.item() == pytest.approx(5 / 3)


def test_without_a_penalty_to_speak_of_it_is_least_squares_and_with_a_large_one_the_identity() -> (
    None
):
    generator = torch.Generator().manual_seed(0)
    early, late = (torch.randn(50, 4, generator=generator).double() for _ in range(2))
    ones = torch.cat([early, torch.ones(50, 1).double()], 1)
    plain = torch.linalg.lstsq(ones, late).solution
    weight, bias = ridge_fit(early, late, 1e-9)
    assert torch.allclose(torch.cat([weight, bias[None]]), plain, atol=1e-6)
    weight, _ = ridge_fit(early, late, 1e9)
    assert torch.allclose(weight, torch.eye(4).double(), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox", "phi"])
def test_a_model_reads_the_mapped_state_until_the_hooks_are_off(family: str) -> None:
    """A huge penalty leaves a bias alone: logits are head(norm(state of the first block + mean
    difference)), here from the library's own states.
    """
    model, batch = tiny_model(family), collate(SEQUENCES)
    inputs = batch.input_ids[2:3]
    with torch.no_grad():
        before = model(inputs).logits
        caught: list[torch.Tensor] = []
        states = model(inputs, output_hidden_states=True).hidden_states[1]
        with ExitStack() as leaving:
            linear_shortcut(model, SEQUENCES, leaving, skipped=2, penalty=1e12)
            head = model.get_output_embeddings()
            assert head is not None
            leaving.callback(
                head.register_forward_hook(lambda _m, given, _o: caught.append(given[0])).remove
            )
            cut = model(inputs).logits
            written = model.generate(inputs, max_new_tokens=3, pad_token_id=0, do_sample=False)
            again = inputs
            # it may end early, and has then written the end
            while again.shape[1] < written.shape[1]:
                again = torch.cat([again, model(again).logits[:, -1].argmax(-1, keepdim=True)], 1)
        assert torch.equal(model(inputs).logits, before) and not torch.allclose(
            cut, before, atol=1e-3
        )
        bias = _mean_difference(family)
        assert torch.allclose(caught[0], normed_states(model, (states + bias)[0])[None], atol=1e-5)
        assert written.shape[1] > inputs.shape[1] and torch.equal(written, again)


def _mean_difference(family: str) -> torch.Tensor:
    """Mean over the positions before a label of the last block's output less the first's, sequence
    by sequence, without padding.
    """
    model, found = tiny_model(family), []
    layers = next(
        m for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3
    )
    last: list[torch.Tensor] = []
    layers[2].register_forward_hook(
        lambda _m, _i, output: last.append(
            output if isinstance(output, torch.Tensor) else output[0]
        )
    )
    for s in SEQUENCES:
        with torch.no_grad():
            first = model(torch.tensor([s.ids]), output_hidden_states=True).hidden_states[1]
        found += [last[-1][0, at - 1] - first[0, at - 1] for at in range(s.start, len(s.ids))]
    return torch.stack(found).mean(0)


def test_leaving_out_every_block_is_refused() -> None:
    with pytest.raises(
        UserError, match="linear_shortcut.skipped must be under the model's 3 blocks, got 3"
    ):
        linear_shortcut(tiny_model(), SEQUENCES, ExitStack(), skipped=3)


def test_base_stands_as_it_was_beside_a_bent_model(domain_bed: Bed, tmp_path: Path) -> None:
    """base_kl of base under the shortcut is above zero: were base measured through the same hooks
    it would be none.
    """
    quick: dict[str, Value] = {
        "model.teach": False,
        "model.name": str(domain_bed.base),
        "model.gold": str(domain_bed.gold),
    }
    quick |= {
        "stage": "base",
        "measure.metrics": "base_kl,probability",
        "attack.name": "linear_shortcut",
    }
    trial = validate_trial(with_values(Trial(), quick))
    assert (
        run_attack_or_trial(
            trial, workspace_of(trial, tmp_path / "cache"), tmp_path / "run", "quick", "1"
        )
        == "complete"
    )
    found = (
        open_run(tmp_path / "run")
        .examples.filter(pl.col("split") == "forget", pl.col("metric") == "base_kl")
        .collect()["value"]
    )
    assert found.len() > 0 and float(found.min()) > 1e-4  # type: ignore[arg-type]
    assert (
        model_state.reset_weights(str(domain_bed.base))
        .model(torch.tensor([[3, 4]]))
        .logits.isfinite()
        .all()
    )
    model_state.load_model_state.cache_clear()


def test_nll_under_the_hooks_is_that_of_the_mapped_states() -> None:
    """The scoring pass of the metrics sees the hooks too."""
    model = tiny_model()
    with torch.no_grad(), ExitStack() as leaving:
        before = token_nll(model, collate(SEQUENCES))
        linear_shortcut(model, SEQUENCES, leaving)
        assert not torch.allclose(token_nll(model, collate(SEQUENCES)), before, atol=1e-3)
