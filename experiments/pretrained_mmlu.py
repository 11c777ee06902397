"""How much of a domain of multiple-choice questions does a real language model need to unlearn it?

As WMDP and the coreset paper ask it (2504.10185), on a model that fits everybody's machine: of
MMLU's subjects those are taken that SmolLM2-135M-Instruct answers above chance. Every other
question of the forget subjects is the forget set, the ones between are `near`. Nothing is trained
first and there is no gold: nobody has this model without the subject. What forgetting aims at is
chance, the mean probability of the wrong options.

Hypothesis: a quarter of the questions does what all of them do, and `near`, which no training was
shown, falls as far, since a domain is forgotten as a whole. Refuted if a quarter leaves more than
all of them (intervals apart), if `near` keeps what the forget set loses, or if as many questions
of the retain subjects, or random text of their length, forget as much.

The search is for what lies nearest chance, of what keeps 0.9 of base's probability on `untouched`,
subjects that no training was shown. RMU trains three matrices of blocks 5 to 7, NPO adapters on
blocks 20 to 29.

Departures from WMDP: a model of 135 million parameters, at most two hundred questions of a subject.
`multiple_choice` stands beside `probability`: a model that is barely above chance has little to
lose there. `--preset quick`: RMU alone, half of the search. `make smollm2` brings the model; the
data are `MMLU=DIRECTORY`, else the Hub's.
"""

import os
from pathlib import Path

from rayunlearn.config import Data, Measure, Method, Model, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range
from rayunlearn.models.smollm2 import smollm2_folder

SHARED = Path(__file__).parents[2] / "shared" / "data" / "mmlu"
MMLU = os.environ.get("MMLU", str(SHARED) if SHARED.is_dir() else "cais/mmlu")
BASE = Trial(
    data=Data(
        name="mmlu-domain",
        path=MMLU,
        options="questions=200,forget=anatomy,human_aging,"
        "retain=marketing,untouched=miscellaneous,high_school_geography",
        template="chat",
        max_tokens=160,
    ),
    model=Model(name=str(smollm2_folder()), teach=False),
    method=Method(retain_weight=4.0, layer=7),
    # activations of this model at block 7 are 115 to 170 long
    options=(("rmu.steering", 200.0),),
    train=Train(learning_rate=1e-3, batch_size=4),
    # looked at once, at the end: a look costs as much as ten steps
    stop=Stop(utility_floor=0.0, check_every=40),
    measure=Measure(metrics="probability,multiple_choice", limit_probes="30"),
)
NAMES = (
    "method.forget",
    "method.retain",
    "train.adapter",
    "train.layers",
    "train.parameters",
    "train.length",
)
RMU = ("rmu", "activation", "none", "5,6,7", "down_proj", 40.0)
NPO = ("npo", "nll", "lora", "20,21,22,23,24,25,26,27,28,29", ".*", 16.0)
METHODS = {NAMES: (RMU, NPO)}
SEEDS = {("select.seed", "train.seed"): (0, 1, 2, 3, 4)}
CURVE = METHODS | SEEDS | {"select.ratio": (0.05, 0.25, 1.0)}
QUARTER = METHODS | SEEDS | {"select.ratio": (0.25,)}
RANDOM = {"select.text": ("random_text",)}
OTHER = {("select.text", "select.other_split"): (("other_documents", "retain"),)}
AXES = (CURVE, QUARTER | RANDOM, QUARTER | OTHER)
SEARCH = {
    "train.learning_rate": Range(5e-4, 5e-3, log=True),
    "rmu.steering": Range(50.0, 400.0, log=True),
    "method.retain_weight": Range(1.0, 8.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=8, batch=4)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="untouched", utility_floor=0.9
)
ALONE = {NAMES: (RMU,)}
PRESETS = {
    "quick": {
        "AXES": (CURVE | ALONE, QUARTER | RANDOM | ALONE, QUARTER | OTHER | ALONE),
        "BUDGET": Budget(tuning="shared", trials=4, batch=4),
    },
}
