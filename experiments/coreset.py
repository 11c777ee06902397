"""Does the coreset effect follow from redundancy? Both test beds, both ends of the redundancy dial.

Hypothesis: what matters is which share of the facts the coreset states. At twenty documents per fact a quarter of the
documents states all facts and unlearns like the whole set; at two documents per fact, and among people (one question per fact),
the same share of documents leaves facts out and unlearns less, at equal optimizer steps.
Refuted if at the low end a quarter of the documents unlearns like all of them (intervals overlap), or if at the high
end it does not.
"""

from rayunlearn.config import Data, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny"),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.1, check_every=20),
)
METHODS = {("method.forget", "method.retain"): (("npo", "nll"), ("rmu", "activation"))}
CORESETS = {
    "select.name": ("random", "moderate"),
    "select.ratio": (0.01, 0.05, 0.25, 1.0),
    ("select.seed", "train.seed"): ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4)),
}
AXES = (
    {"data.redundancy": (2, 20)} | METHODS | CORESETS,
    {"data.name": ("people",)} | METHODS | CORESETS,
)
SEARCH = {
    "train.learning_rate": Range(5e-4, 3e-3, log=True),
    "npo.beta": Range(0.005, 0.5, log=True),
    "rmu.steering": Range(2.0, 30.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=12, batch=4)
OBJECTIVE = Objective(forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9)
