"""How little of the forget set is enough, on a synthetic dataset where every fact is told in twenty
documents?

Hypothesis: where facts are told often, a random quarter of the documents unlearns like all of them
at equal optimizer steps, and a smaller coreset fades as it covers fewer of the facts. Refuted if
forgetting at 25% lies outside the interval of the full set, or if a coreset that covers half of
the facts forgets like one that covers them all.

A first look in minutes: one corpus, two methods, two selectors, hyperparameters tuned once at 100%
and shared.
"""

from rayunlearn.config import Data, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=5e-4),
    stop=Stop(utility_floor=0.1, check_every=20),
)
AXES = {
    ("method.forget", "method.retain"): (("npo", "nll"), ("rmu", "activation")),
    "select.name": ("random", "moderate"),
    "select.ratio": (0.01, 0.05, 0.25, 1.0),
    ("select.seed", "train.seed"): ((0, 0), (1, 1), (2, 2)),
}
SEARCH = {
    "train.learning_rate": Range(5e-4, 3e-3, log=True),
    # summed over a document of fifty tokens, so smaller than for short answers
    "npo.beta": Range(0.005, 0.1, log=True),
    "rmu.steering": Range(2.0, 30.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=8, batch=4)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)
