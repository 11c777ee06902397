"""The weights that a trial ends with, rebuilt where they are wanted: to attack, to export, to
mix, to look into.

Runs keep rows, not weights. What a trial changed is kept in the cache at the first call, and only
that: of an RMU trial three matrices. The same call later, or in another process, reads it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rayunlearn.config import Trial
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.models.mapped_weights import put_back
from rayunlearn.models.tensor_cache import tensors_once
from rayunlearn.storage.code_identity import code_digest, version_of
from rayunlearn.trial.context import TrialContext, start_context
from rayunlearn.trial.identity import trains_weights
from rayunlearn.trial.unlearn import TRAINING, select_documents, unlearn
from rayunlearn.trial.workspace import Workspace, identity_in

if TYPE_CHECKING:
    from torch import Tensor


def rebuild_model(trial: Trial, workspace: Workspace) -> TrialContext:
    """The trial (checked) with this worker's model holding what it ends with: the weights of its
    stage base, gold or unlearned.

    Bit for bit those that the trial was measured with, on the same device and libraries. The model
    is the one that `model_state.reset_weights` gives back: the next trial of this process takes it.
    Raises UserError for a gold stage without a gold model, for a trial that diverged, and
    CorruptWeightsError as `reset_weights` does.
    """
    context = start_context(trial, workspace)
    if trains_weights(trial):
        changed = tensors_once(
            context.cache / "unlearned", _key(context), partial(_unlearned_weights, context)
        )
        put_back(context.model, context.state.pristine | changed)
        context.model.eval().requires_grad_(True)
    return context


def _key(context: TrialContext) -> dict[str, object]:
    versions = {name: version_of(name) for name in ("torch", "transformers", "peft")}
    return {
        "trial": identity_in(context.trial, context.workspace),
        "start": context.state.checksum,
        "device": context.model.device.type,
        "code": code_digest(*TRAINING),
        **versions,
    }


def _unlearned_weights(context: TrialContext) -> dict[str, Tensor]:
    """Unlearn as the trial did; the weights that are not what they were. Tied weights count under
    each of their names.
    """
    identity = identity_in(context.trial, context.workspace)
    with torch.random.fork_rng():
        torch.manual_seed(context.trial.train.seed)
        coreset, _ = select_documents(context)
        log = unlearn(context, coreset, context.cache / "unlearned" / f"adapter-{identity}")
    require(
        log.outcome != "diverged",
        "a trial must not have diverged: there are no weights to continue with",
        identity,
    )
    after = {name: tensor.detach().cpu() for name, tensor in context.model.state_dict().items()}
    return {
        name: tensor.clone()
        for name, tensor in after.items()
        if not torch.equal(tensor, context.state.pristine[name])
    }
