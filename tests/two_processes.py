"""Training steps that two processes of `tests.sharded_process` share, small enough to work out by
hand.
"""

from functools import partial

import torch
from torch import Tensor, nn

from rayunlearn.data.tokenize import Encoded
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.objective import ObjectiveSettings, Side, UnlearningObjective
from rayunlearn.methods.retain import RETAIN
from rayunlearn.models.reference import Reference
from rayunlearn.models.scratch import build_model
from rayunlearn.train.loop import Callbacks, OptimizerSettings, optimise
from rayunlearn.train.step import StepLoss

# of a model that finds each equally likely, every token costs ln 1826 = 7.51 nats
VOCABULARY = 1826
# the documents of the step: tokens and labels of each, no two alike
LENGTHS = ((5, 2), (18, 11), (9, 8), (7, 1), (4, 3), (12, 6), (8, 2), (15, 9))


def parabola() -> dict[str, object]:
    """Three steps on (weight - piece)^2 from weight 5, the pieces the process's own: which it saw,
    the weight at the end and the gradient norms.
    """
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    seen: list[int] = []

    def loss(piece: int) -> StepLoss:
        seen.append(piece)
        return StepLoss((model.weight - piece).square().sum())

    log = optimise(
        model,
        loss,
        steps=3,
        optimizer=OptimizerSettings(
            learning_rate=0.5, schedule="constant", warmup_fraction=0.0, max_grad_norm=1e9
        ),
    )
    norms = [row.grad_norm for row in log.rows]
    return {"seen": seen, "weight": float(model.weight.detach()), "grad_norms": norms}


def dual_weight_after_one_step(pieces: int, accumulation: int) -> float:
    """PDU's weight after one optimizer step of eight documents in so many pieces, of which each
    process accumulates some. Rate 1, limit 0.1, start 1; a retain loss of ln 1826.
    """
    model = build_model("tiny", VOCABULARY, seed=0)
    nn.init.zeros_(model.get_output_embeddings().weight)
    sequences = [
        Encoded(str(at), tuple(range(3, 3 + n)), n - labels)
        for at, (n, labels) in enumerate(LENGTHS)
    ]
    row, kept = FORGET["pdu"], RETAIN["nll"]
    terms = UnlearningObjective(
        model,
        Side(row.function, sequences, Reference({}), mean=row.mean),
        Side(kept.function, sequences, Reference({}), mean=kept.mean),
        ObjectiveSettings(
            retain_weight=1.0,
            layer=1,
            batch_size=len(sequences),
            seed=0,
            n_microbatches=pieces,
            weighting=partial(row.weighting, rate=1.0, limit=0.1),
        ),
    )
    optimise(
        model,
        terms,
        steps=1,
        optimizer=OptimizerSettings(learning_rate=1e-3, accumulation=accumulation),
        callbacks=Callbacks(after_step=terms.after_step),
    )
    (weight,) = terms.state().values()
    return float(weight if isinstance(weight, Tensor) else torch.tensor(weight))


def dual() -> list[float]:
    """PDU's weight after a step in 2, 4 and 8 pieces, which the two processes share."""
    return [dual_weight_after_one_step(pieces, pieces // 2) for pieces in (2, 4, 8)]
