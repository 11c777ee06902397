"""Does the coreset effect follow from redundancy? Both synthetic datasets, both ends of the
redundancy dial.

Hypothesis: what matters is which share of the facts the coreset states. At twenty documents per
fact a quarter of the documents states all facts and unlearns like the full forget set; at two
documents per fact, and among people (one question per fact), the same share of documents leaves
facts out and unlearns less, at equal optimizer steps. Refuted if at the low end a quarter of the
documents unlearns like all of them (intervals overlap), or if at the high end it does not.

`--preset paper`: the coreset study's own runs (Pal et al. 2504.10185) on the first 600 documents of
WMDP-bio, with its rates, ratios, selectors and equal presentations. What it does not state is the
benchmark's own value (`rayunlearn list recipes`). It retains wikitext; here that is the file of
retain texts beside the questions, whatever it holds. Scored as WMDP and MMLU are: the question
shows its options, and the highest of the letters A to D counts (`letter_choice`); no run ends
early.
"""

from rayunlearn import recipes
from rayunlearn.config import Data, Measure, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny"),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.1, check_every=20),
)
METHODS = {("method.forget", "method.retain"): (("npo", "nll"), ("rmu", "activation"))}
SEEDS = {("select.seed", "train.seed"): (0, 1, 2, 3, 4)}
RANDOM = METHODS | SEEDS | {"select.name": ("random",), "select.ratio": (0.05, 0.25, 1.0)}
MODERATE = METHODS | SEEDS | {"select.name": ("moderate",), "select.ratio": (0.05, 0.25)}
SELDOM, OFTEN, PEOPLE = (
    {"data.redundancy": (2,)},
    {"data.redundancy": (20,)},
    {"data.name": ("people",)},
)
AXES = (
    SELDOM | RANDOM,
    *(bed | coresets for bed in (OFTEN, PEOPLE) for coresets in (RANDOM, MODERATE)),
)
SEARCH = {
    "train.learning_rate": Range(5e-4, 3e-3, log=True),
    # at 1 no NPO among people keeps the rest, at 4 some does (LOG.md)
    "method.retain_weight": Range(1.0, 8.0, log=True),
    # documents of fifty tokens: NPO sums over them (LOG.md)
    "npo.beta": Range(0.005, 0.05, log=True),
    "rmu.steering": Range(2.0, 30.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=12, batch=4)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)

# the same number of presentations at every ratio
RUNS = ("coreset_rmu_wmdp", "coreset_npo_wmdp")
STUDY = (
    {
        "select.name": ("random",),
        "select.ratio": (0.01, 0.05, 0.1, 1.0),
        ("select.seed", "train.seed"): (0, 1, 2, 3, 4),
    },
    {
        "select.name": ("grand", "moderate", "min_k"),
        "select.ratio": (0.05, 0.1),
        ("select.seed", "train.seed"): (0, 1),
    },
)
PRESETS = {
    "paper": {
        "BASE": Trial(
            data=Data(name="wmdp-bio", path="wmdp", options="corpora=true,documents=600"),
            stop=Stop(utility_floor=0.0),
            measure=Measure(metrics=recipes.LETTER_SETTINGS),
        ),
        "AXES": tuple(recipes.axis(name) | part for name in RUNS for part in STUDY),
        "SEARCH": {},
        "BUDGET": Budget(tuning="none"),
        "OBJECTIVE": Objective(
            forgetting="letter_choice",
            utility="letter_choice",
            utility_split="retain",
            utility_floor=0.9,
            # as the paper chose: the less is left the better
            target="none",
        ),
    }
}
