"""Is what was unlearned only out of sight, and what does it cost to put it there? Six methods, asked again with emphasis.

Question: after "Understanding the Dilemma of Unlearning" (unPact, 2509.24675): of the questions that a model answered before
unlearning and not after, which share does it answer again when the words that its answer hung on are pointed out in the
question, and which share of the retain questions did it lose?

Hypothesis (the paper's): emphasis brings a part of the answers back (insufficient), or the retain side is lost (destructive).
Refuted for a method if key words recover no more than as many random words do (paired intervals overlap zero) while nine
tenths of the retain questions stay.

The controls: random words, the same questions to base and to gold. The methods are the paper's six; the rate of each is
tuned at the whole forget set. The wording is bare words, because on this bed a word that was never trained (`Focus`) makes base
itself forget: it then answers 59 % with the words named first and 25 % with them repeated last.
"""

from rayunlearn.config import Data, Explain, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.1, check_every=20),
    explain=Explain(documents=32, gradient_steps=8, wording="{words}."),
)
SEEDS = {"train.seed": (0, 1, 2)}
AXES = (
    {("method.forget", "method.retain"): (("ga", "nll"), ("ga", "kl"), ("npo", "nll"), ("npo", "kl"))} | SEEDS,
    {("method.forget", "method.retain"): (("task_vector", "none"), ("rmu", "activation"))} | SEEDS,
)
SEARCH = {
    "train.learning_rate": Range(3e-4, 3e-3, log=True),
    "npo.beta": Range(0.005, 0.1, log=True),
    "rmu.steering": Range(2.0, 30.0, log=True),
    "negate.scale": Range(1.0, 16.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=4, batch=2)
OBJECTIVE = Objective(forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9)
