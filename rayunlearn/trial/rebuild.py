"""The weights that a trial ends with, made again where they are wanted: to attack, to export, to
mix, to look into.

Runs keep rows, not weights. What a trial changed is kept in the cache at the first call, and only
that: of an RMU trial three matrices. The same call later, or in another process, reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayunlearn.config import Trial
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.models.tensor_cache import tensors_once
from rayunlearn.trial.identity import trains_weights
from rayunlearn.trial.model_state import ModelState, reset_weights
from rayunlearn.trial.provenance import version_of
from rayunlearn.trial.unlearn import select_documents, unlearn
from rayunlearn.trial.workspace import Workspace, identity_in, start_folder

if TYPE_CHECKING:
    from torch import Tensor


def rebuild_model(trial: Trial, workspace: Workspace) -> ModelState:
    """This worker's model holding what `trial` (checked) ends with: the weights of its stage base,
    gold or unlearned.

    Bit for bit those that the trial was measured with, on the same device and libraries. The model
    is the one that `model_state.reset_weights` gives back: the next trial of this process takes it. Raises
    UserError for a gold stage without a gold model, for a trial that diverged, and
    CorruptWeightsError as `reset` does.
    """
    state = reset_weights(start_folder(trial, workspace))
    if trains_weights(trial):
        changed = tensors_once(
            workspace.cache / "unlearned",
            _key(trial, workspace, state),
            lambda: _changed(trial, workspace, state),
        )
        state.model.load_state_dict(state.pristine | changed)
        state.model.eval().requires_grad_(True)
    return state


def _key(trial: Trial, workspace: Workspace, state: ModelState) -> dict[str, object]:
    versions = {name: version_of(name) for name in ("torch", "transformers", "peft")}
    identity = identity_in(trial, workspace)
    return {
        "trial": identity,
        "start": state.checksum,
        "device": state.model.device.type,
        **versions,
    }


def _changed(trial: Trial, workspace: Workspace, state: ModelState) -> dict[str, Tensor]:
    """Unlearn as the trial did; the weights that are not what they were. Tied weights count under
    each of their names.
    """
    with torch.random.fork_rng():
        torch.manual_seed(trial.train.seed)
        coreset, _ = select_documents(trial, workspace, state)
        identity = identity_in(trial, workspace)
        log = unlearn(
            trial, workspace, state, coreset, workspace.cache / "unlearned" / f"adapter-{identity}"
        )
    require(
        log.ended != "diverged",
        "a trial must not have diverged: there are no weights to go on with",
        identity,
    )
    after = {name: tensor.detach().cpu() for name, tensor in state.model.state_dict().items()}
    return {
        name: tensor.clone()
        for name, tensor in after.items()
        if not torch.equal(tensor, state.pristine[name])
    }
