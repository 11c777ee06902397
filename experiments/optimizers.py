"""Does the optimizer decide how well unlearning lasts? Two methods by four optimizers, then
relearning and four bits.

Question: optimizers that use less of the gradient are said to end in places that are harder to
leave: Lang et al. (2510.00761) find that signs of gradients, and no gradients at all, leave an
attacker less than AdamW does, under relearning and under quantisation. Is it so here, at equal
forgetting and at a rate that was searched for each?

Hypothesis: what relearning and four bits recover (attacked less unlearned) is less for `sign`
than for `adamw`, for both methods, with `lion` between them. Refuted for a method and an attack if
the difference is not below zero (paired over seeds and documents, Holm over all comparisons).

Every study aims at gold, so that all optimizers stop at about the same forgetting: what is left
before the attack stands beside what is recovered. Base and gold are attacked as well, and the
controls are the retain loss alone with the same optimizer. Attackers relearn with AdamW whatever
unlearned; which one they take is theirs to choose. Not tried: gradient-free steps, which need many
more of them, and second-order ones.

A rate of plain gradient descent is another thing than one of the three that normalise, so it has a
preset of its own, with its own range. Eight trials of tuning a study, five seeds:

    rayunlearn run experiments/optimizers.py
    rayunlearn run experiments/optimizers.py --preset sgd
    for run in runs/optimizers/1 runs/optimizers/1-sgd; do
      rayunlearn attack $run --trials grid --seeds 1 --attacks relearning,round_to_nearest
    done
    python -m experiments.findings.optimizers runs/optimizers/1 runs/optimizers/1-sgd
"""

from rayunlearn.config import Data, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1, retain_weight=3.0),
    train=Train(length=60, batch_size=8, learning_rate=5e-4),
    stop=Stop(utility_floor=0.1, check_every=20),
)
METHODS = {("method.forget", "method.retain"): (("npo", "nll"), ("rmu", "activation"))}
SEEDS = {"train.seed": (0, 1, 2, 3, 4)}
AXES = METHODS | {"train.optimizer": ("adamw", "lion", "sign")} | SEEDS
METHOD_SEARCH = {
    "method.retain_weight": Range(1.0, 8.0, log=True),
    "npo.beta": Range(0.005, 0.1, log=True),
    "rmu.steering": Range(2.0, 60.0, log=True),
}
SEARCH = {"train.learning_rate": Range(1e-4, 5e-3, log=True)} | METHOD_SEARCH
BUDGET = Budget(tuning="shared", trials=8, batch=4)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)
PRESETS = {
    "sgd": {
        "BASE": Trial(
            data=BASE.data,
            method=BASE.method,
            train=Train(length=60, batch_size=8, learning_rate=0.2),
            stop=BASE.stop,
        ),
        "AXES": METHODS | {"train.optimizer": ("sgd",)} | SEEDS,
        "SEARCH": {"train.learning_rate": Range(0.02, 2.0, log=True)} | METHOD_SEARCH,
    }
}
