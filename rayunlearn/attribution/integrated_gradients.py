"""A second opinion on what a question's tokens do: integrated gradients, by captum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Batch, Encoded, collate
from rayunlearn.errors import require
from rayunlearn.lazy import functional, torch
from rayunlearn.models.forward import label_ids
from rayunlearn.models.logits import logits_at

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def integrated_gradients(
    model: PreTrainedModel,
    sequence: Encoded,
    places: Sequence[int],
    *,
    steps: int,
    baseline_id: int,
) -> Tensor:
    """Integrated gradients of the answer's mean log-probability at the tokens of `places`, (n,)
    float32, in nats.

    Sundararajan et al. 1703.01365, on the input embeddings, summed over their width. The path
    starts where the tokens of `places` are `baseline_id` (padding) and the others are as they are,
    so the values add up to the difference of the two log-probabilities, the better the more
    `steps`. Padding is our choice; zero vectors would not do: a model that normalises its input
    scales them away, and all that happens happens at the very start of the path. Nothing of the
    model changes.
    """
    check_library(steps)
    from captum.attr import IntegratedGradients

    batch, embeddings = collate([sequence]).to(model.device), model.get_input_embeddings()
    was_training = model.training
    model.eval()
    try:
        embedded = embeddings(batch.input_ids).detach()
        start = embedded.clone()
        padding = torch.tensor(baseline_id, device=start.device)
        start[:, list(places)] = embeddings(padding).detach()
        values: Tensor = IntegratedGradients(partial(_mean_log_prob, model, batch)).attribute(
            embedded, start, n_steps=steps, internal_batch_size=64
        )
    finally:
        model.train(was_training)
    return values[0].sum(-1)[list(places)].detach().float().cpu()


def _mean_log_prob(model: PreTrainedModel, batch: Batch, embedded: Tensor) -> Tensor:
    """Mean log-probability (n,) of the labels of the batch's one sequence, after each of n input
    embeddings (n, T, D).
    """
    labels, predicting = label_ids(batch), batch.places - 1
    rows, length, _ = embedded.shape
    starts = length * torch.arange(rows, device=embedded.device)
    places = (starts[:, None] + predicting).flatten()
    logits = logits_at(model, {"inputs_embeds": embedded}, places)
    nll = functional.cross_entropy(logits, labels.repeat(rows), reduction="none")
    return -nll.view(rows, -1).mean(-1)


def check_library(steps: int) -> None:
    """Raise UserError where integrated gradients are asked for (`steps` > 0) and captum is not
    installed.
    """
    installed = steps == 0 or find_spec("captum") is not None
    require(
        installed,
        "explain.gradient_steps must be 0 without captum (pip install 'rayunlearn[attribution]')",
        steps,
    )
