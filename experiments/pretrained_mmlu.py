"""Does a coreset do for a domain of multiple-choice questions what all of it does?

As WMDP and the coreset paper ask it (2504.10185), on a model that fits everybody's machine: of
MMLU's subjects those are taken that SmolLM2-135M-Instruct answers above chance, anatomy and human
aging to forget and marketing to keep. Every other question of the forget subjects is the forget
set, the ones between are `near`. Nothing is trained first and there is no gold: nobody has this
model without the subjects.

Hypothesis: a quarter of the questions does what all of them do, and `near`, which no training was
shown, falls as far, since a domain is forgotten as a whole. Refuted if a quarter leaves more than
all of them (intervals apart), if `near` keeps what the forget set loses, or if as many texts of
random words forget as much.

Measured is the share of the true option in the options' probabilities (`option_probability`, chance
is a quarter) and, beside it, whether it is the likeliest (`multiple_choice`): of the probability of
the option's text base has 0.006, nothing to lose (LOG.md). Rate, steering and retain weight are
searched for each method, at the full forget set: the settings that RMU's search on capitals found
move nothing here (LOG.md). RMU trains three matrices of blocks 5 to 7, NPO adapters on blocks 20 to
29. A quarter is also chosen by three selectors. A third of the questions is answered right where a
quarter is chance, so at most that difference can go: ask a model that knows more, `--set
model.name=...`.

Departures from WMDP: a model of 135 million parameters, questions in place of papers, nothing
untouched: of nine subjects that were asked (docs/benchmarks.md) no other is clearly above chance.
`--preset quick`: RMU alone, without selectors. `make smollm2` brings the model; the data are
`MMLU=DIRECTORY`, else the Hub's.
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
        options="questions=200,forget=anatomy,human_aging,retain=marketing,untouched=",
        template="chat",
        max_tokens=160,
        # plain English about everyday things: `probability` of its tokens
        probes="general=general_text",
    ),
    model=Model(name=str(smollm2_folder()), teach=False),
    method=Method(retain_weight=4.0, layer=7),
    # activations of this model at block 7 are 115 to 170 long
    options=(("rmu.steering", 200.0),),
    train=Train(learning_rate=2e-3, batch_size=4),
    # looked at once, at the end: a look costs as much as ten steps
    stop=Stop(utility_floor=0.0, check_every=40),
    measure=Measure(
        metrics="option_probability,multiple_choice,probability", limit_probes="forget=60,40"
    ),
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
SELECTORS = QUARTER | {"select.name": ("moderate", "loss", "keyword_coverage")}
RANDOM = QUARTER | {"select.text": ("random_text",)}
AXES = (CURVE, SELECTORS, RANDOM)
SEARCH = {
    "train.learning_rate": Range(1e-3, 1e-2, log=True),
    "rmu.steering": Range(50.0, 400.0, log=True),
    "method.retain_weight": Range(0.5, 8.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=6, batch=3)
OBJECTIVE = Objective(
    forgetting="option_probability", utility="option_probability", utility_floor=0.9
)
ALONE = {NAMES: (RMU,)}
PRESETS = {"quick": {"AXES": (CURVE | ALONE, RANDOM | ALONE)}}
