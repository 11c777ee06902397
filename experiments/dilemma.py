"""Is what was unlearned only out of sight, and what does it cost to put it there? Six methods, asked again with emphasis.

Question: after "Understanding the Dilemma of Unlearning" (unPact, 2509.24675): of the questions that a model answered before
unlearning and not after, which share does it answer again when the words that its answer hung on are pointed out in the
question, and which share of the retain questions did it lose?

Hypothesis (the paper's): emphasis brings a part of the answers back (insufficient), or the retain side is lost (destructive).
Refuted for a method if key words recover no more than as many random words do (paired intervals overlap zero) while nine
tenths of the retain questions stay.

The controls: random words, the same questions to base and to gold. The methods are the paper's six, and two of them again with
a forget loss that counts the tokens of the answers' words alone, which the paper's analysis asks for and does not try. Rate and
strength are tuned for each at the whole forget set; the ranges are what is left of wider ones, in which four trials found gradient
ascent either idle or ruinous (LOG.md). The wording is bare words, because on this bed a word that was never trained (`Focus`) makes
base itself forget: it then answers 59 % with the words named first and 25 % with them repeated last.
"""

from rayunlearn.config import Data, Explain, Method, Stop, Train, Trial
from rayunlearn.data.testbed import SCIENCE
from rayunlearn.experiment import Budget, Objective, Range

ANSWERS = ",".join(value for attribute in SCIENCE for value in attribute.values)
BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.1, check_every=20),
    explain=Explain(documents=32, gradient_steps=8, wording="{words}."),
)
SEEDS = {"train.seed": (0, 1, 2)}
SIX = (("ga", "nll"), ("ga", "kl"), ("npo", "nll"), ("npo", "kl"), ("task_vector", "none"), ("rmu", "activation"))
AXES = (
    {("method.forget", "method.retain"): SIX} | SEEDS,
    {("method.forget", "method.retain", "token.words"): (("ga", "nll", ANSWERS), ("npo", "nll", ANSWERS))} | SEEDS,
)
SEARCH = {
    "train.learning_rate": Range(7e-4, 1.4e-3, log=True),
    "npo.beta": Range(0.01, 0.05, log=True),
    "rmu.steering": Range(15.0, 60.0, log=True),
    "negate.scale": Range(3.0, 8.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=5, batch=3)
OBJECTIVE = Objective(forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9)
