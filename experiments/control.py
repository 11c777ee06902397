"""Does the order of the methods stay what it was once all of them retain the same?

Question: every forget loss with the retain loss of its paper, on the whole forget set of the tiny domain bed, ranked by the
extraction strength that is left on what was to be forgotten: as training left the models, and after each has been mixed
back to 0.95 (and 0.90) of base's probability on `untouched`: what base knows and no unlearning run is shown, as the
retention of "Unlearning with Control" (2406.09179) is measured on rows that training leaves out. That paper measures it by
extraction strength; eight questions with answers of one token give it steps of 1/8, and 0.95 and 0.90 were one mixture.

Hypothesis: methods that pay for forgetting with everything else (gradient ascent, task vectors) fall behind once they are
mixed back, and methods that harm little keep their place; so the order changes.
What would refute it: no pair of methods that changes places with both differences significant after Holm's correction.

The learning rate of each is tuned by the calibrated score, as in the paper, with four trials: this is the comparison of
a small budget. Every other hyperparameter is at its default. Three seeds; intervals are over seeds and documents.

`rayunlearn run experiments/control.py` runs it; the report and the terminal then show the two orders side by side.
"""

from rayunlearn.config import Calibrate, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.0),  # a ruined model is mixed back like any other
    calibrate=Calibrate(tau=0.95, beside=0.9, retention="probability", split="untouched"),
)
SEEDS = {("select.seed", "train.seed"): ((0, 0), (1, 1), (2, 2))}
AXES = (
    SEEDS | {"method.forget": ("ga", "npo", "dpo", "altpo", "idk", "undial", "wga", "ce_u")},
    # forget x 0.125 and x 0.1 against retain x 1; the dual weight of PDU starts at 50 (its read-me: 50 to 100)
    SEEDS | {("method.forget", "method.retain_weight"): (("simnpo", 8.0), ("satimp", 10.0), ("pdu", 50.0))},
    SEEDS | {("method.forget", "method.retain"): (("rmu", "activation"), ("adaptive_rmu", "activation"), ("llmu", "kl"), ("llmu_two_term", "kl"))},
    SEEDS | {("method.forget", "method.retain"): (("ga", "none"), ("task_vector", "none"))},
)
SEARCH = {"train.learning_rate": Range(2e-4, 1e-2, log=True)}
BUDGET = Budget(tuning="shared", trials=4, batch=4)
OBJECTIVE = Objective(forgetting="extraction_strength", utility="probability", utility_split="untouched", stage="calibrated")
