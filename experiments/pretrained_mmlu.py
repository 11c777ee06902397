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

Measured is the probability of the true option's text. A third of the questions is answered right
where a quarter is chance, so `multiple_choice` has little to lose: `rayunlearn prepare` shows it
of base, with intervals. Nothing is searched: RMU has the settings that the search on capitals found
(`pretrained_coreset.py`, LOG.md), a look at whether they carry over. On the 135 million parameters
they do not, and nothing is decided (LOG.md): ask a model that knows more, `--set model.name=...`.

Departures from WMDP: a model of 135 million parameters, questions in place of papers, nothing
untouched: of nine subjects that were asked (docs/benchmarks.md) no other is clearly above chance.
`make smollm2` brings the model; the data are `MMLU=DIRECTORY`, else the Hub's.
"""

import os
from pathlib import Path

from rayunlearn.config import Data, Measure, Method, Model, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective
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
    ),
    model=Model(name=str(smollm2_folder()), teach=False),
    method=Method(forget="rmu", retain="activation", retain_weight=9.955, layer=7),
    options=(("rmu.steering", 70.71),),
    train=Train(
        learning_rate=4.086e-4,
        batch_size=4,
        length=40.0,
        layers="5,6,7",
        parameters="down_proj",
    ),
    # looked at once, at the end: a look costs as much as ten steps
    stop=Stop(utility_floor=0.0, check_every=40),
    measure=Measure(metrics="probability", limit_probes="40"),
)
SEEDS = {("select.seed", "train.seed"): (0, 1, 2, 3, 4)}
AXES = (
    SEEDS | {"select.ratio": (0.05, 0.25, 1.0)},
    SEEDS | {"select.ratio": (0.25,), "select.text": ("random_text",)},
)
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(forgetting="probability", utility="probability", utility_floor=0.9)
