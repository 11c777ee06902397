"""Is what was forgotten still there for a question that reaches it by another way?

Question: after unlearning the documents, what do a second name of the subject (`aliases`), another
fact whose answer is the subject (`multi_hop`) and a query that combines a forget with a retain
question (`combined`) recover, beside the same on base and gold, and beside the controls that ask in
the same form what the answer does not follow from?

Hypothesis (The Unlearning Mirage 2603.11266, BLUR 2506.15699): unlearning disrupts the way of the
direct question and leaves others, so the recovered fraction of aliases and multi_hop is above zero
and above that of their controls. Refuted for a method if its interval holds zero, or if the control
recovers as much: then the form of the question brings it.

The dataset is the domain one with `data.linked`: base learns the questions by second names and
links as it learns the direct ones, since a model this small composes nothing by itself. So this is
about other ways to a fact that were learned, not about composition: what a large model does with a
chain that it never saw is another question.

Two commands: `rayunlearn run experiments/linked_questions.py`, then `rayunlearn attack
runs/linked_questions/1 --trials grid --panel linked --seeds 1`.
"""

from rayunlearn.config import Data, Measure, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20, linked=True),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    measure=Measure(metrics="cheap,rouge_l_recall", max_new_tokens=4),
    stop=Stop(utility_floor=0.1, check_every=20),
)
AXES = {
    ("method.forget", "method.retain"): (("npo", "nll"), ("rmu", "activation")),
    ("select.seed", "train.seed"): ((0, 0), (1, 1), (2, 2)),
}
SEARCH = {
    "train.learning_rate": Range(5e-4, 3e-3, log=True),
    "npo.beta": Range(0.005, 0.1, log=True),
    "rmu.steering": Range(2.0, 30.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=8, batch=4)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)
