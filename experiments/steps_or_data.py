"""Is "train longer" about steps or about documents? Forgetting against optimizer steps, for every
ratio, and the full set past one epoch.

Question: the coreset study (Pal et al. 2504.10185) gives a coreset the same number of presentations
as the full set by more epochs, and has no run in which the full set itself goes on past its epochs.
Is a small coreset as good because its documents are enough, or because it takes as many steps?

Hypothesis: at equal steps the ratios lie on one curve, down to where too few documents are left; at
equal epochs they do not. Refuted if the mean gap to the full set at equal steps is not smaller than
that at equal epochs (paired over seeds and documents), or if the full set's forgetting ends with
its first epoch while a coreset's goes on.

Lengths are at a constant rate without warm-up, so a shorter run is the beginning of a longer one:
the longest is trained, and the others are measured on its way as trials of their own. 160 documents
in batches of 8: 20 steps are an epoch of the full set, and one of 25% is 5. The rates are fixed,
found by hand on the full set at 80 steps; nothing is tuned per length.

`--preset paper`: that study's cells on WMDP-bio at its presentations, and at a quarter, half, three
and nine times as many, which it does not have. Scored as there: options shown, the highest of the
letters A to D (`letter_choice`).
"""

from rayunlearn import recipes
from rayunlearn.config import Data, Measure, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1),
    train=Train(batch_size=8, schedule="constant", warmup_fraction=0.0),
    stop=Stop(utility_floor=0.0),
)
METHODS = (
    {
        ("method.forget", "method.retain", "train.learning_rate", "npo.beta"): (
            ("npo", "nll", 6e-4, 0.025),
        )
    },
    {
        ("method.forget", "method.retain", "train.learning_rate", "rmu.steering"): (
            ("rmu", "activation", 1.5e-3, 15.0),
        )
    },
)
CORESETS = {
    "select.ratio": (0.0125, 0.0625, 0.25, 1.0),
    "train.length": (10.0, 20.0, 40.0, 80.0, 160.0),
    ("select.seed", "train.seed"): (0, 1, 2, 3, 4),
}
AXES = tuple(method | CORESETS for method in METHODS)
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)

# The study's own cells (600 documents of WMDP-bio; presentations 600 are its full run) and three
# and nine times as many.
LONGER = {
    "select.ratio": (0.01, 0.05, 0.1, 1.0),
    "train.length": (150.0, 300.0, 600.0, 1800.0, 5400.0),
    ("select.seed", "train.seed"): (0, 1, 2, 3, 4),
}

PRESETS = {
    "paper": {
        "BASE": Trial(
            data=Data(name="wmdp-bio", path="wmdp", options="corpora=true,documents=600"),
            train=Train(unit="presentations"),
            stop=Stop(utility_floor=0.0),
            measure=Measure(metrics=recipes.LETTER_SETTINGS),
        ),
        "AXES": tuple(
            recipes.axis(name, without=("train.length", "train.unit")) | LONGER
            for name in ("coreset_rmu_wmdp", "coreset_npo_wmdp")
        ),
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
