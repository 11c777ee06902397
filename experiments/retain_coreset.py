"""Does choosing the retain documents beat drawing them at random, at equal optimizer steps?

Question: a tenth of the retain set trains, chosen by each of the retain selectors, or drawn at
random and half of it replaced by general text. Which leaves more of what is to be kept (`retain`,
most of which no arm was shown), more of `untouched`, which no arm is shown at all, and how much is
forgotten?

Hypothesis: a choice pays. What is like the forget set is what forgetting harms, so reminding the
model of it (`nearest`, `keyword_neighbours`, `gradient_aligned`) leaves more of the retain set and
of `untouched` than random documents do; general text instead of half of them leaves less. Refuted
where no selector lies above random on either split after Holm's correction over all comparisons of
a corpus, or where the one that does has forgotten less.

Two corpora: the people dataset under NPO, where unlearning takes most of `untouched` along, and the
domain dataset under RMU. Losses, rates and steps are those of `experiments/selectors.py`, found by
hand for the full forget set with all retain documents; nothing is tuned for an arm. The full forget
set is unlearned in every arm, ten paired seeds, and the control (the retain loss alone) runs beside
each of them by itself. All retain documents are the upper end.

Selectors with a paper: orthogonality and EL2N as retain coresets after the code of "Effective
unlearning in LLMs relies on the right data retention strategy", several kinds of neighbours beside
general knowledge after Bushipaka et al. 2509.05316. Neither is reproduced: other models, other
data, one tenth of a small retain set.
"""

from rayunlearn.config import Data, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective

BASE = Trial(
    data=Data(name="people", size="tiny"),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8),
    # a ruined model is measured like any other
    stop=Stop(utility_floor=0.0, check_every=30),
)
CORPUS = (
    "data.name",
    "data.redundancy",
    "train.length",
    "method.forget",
    "method.retain",
    "method.retain_weight",
    "train.learning_rate",
)
PEOPLE = {(*CORPUS, "npo.beta"): (("people", 20, 60.0, "npo", "nll", 1.0, 2e-3, 0.2),)}
DOMAIN = {(*CORPUS, "rmu.steering"): (("domain", 5, 100.0, "rmu", "activation", 5.0, 6e-3, 20.0),)}
SEEDS = {("retain.seed", "train.seed"): tuple((seed, seed) for seed in range(10))}
ARMS = {
    ("retain.name", "retain.ratio", "retain.general"): (
        ("random", 0.1, 0.0),
        ("nearest", 0.1, 0.0),
        ("keyword_neighbours", 0.1, 0.0),
        ("gradient_aligned", 0.1, 0.0),
        ("gradient_orthogonal", 0.1, 0.0),
        ("moderate", 0.1, 0.0),
        ("el2n", 0.1, 0.0),
        ("random", 0.1, 0.5),
        ("random", 1.0, 0.0),
    )
}
AXES = (PEOPLE | SEEDS | ARMS, DOMAIN | SEEDS | ARMS)
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)

# one of the two, where there is little time
PRESETS = {"people": {"AXES": (PEOPLE | SEEDS | ARMS,)}}
