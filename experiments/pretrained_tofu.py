"""How much of TOFU's forget01 does a real language model need to unlearn it?

SmolLM2-135M-Instruct is first trained on the forty questions of forget01 and on forty retain
questions (base), and on the retain questions alone (gold), as TOFU does (2401.06121). Then all
forty forget questions, ten or two of them unlearn, ten also as three selectors choose them. The
controls train as many steps on ten: the questions with each other's answers, random text of their
length, other questions (about real authors); and on the retain loss alone.

Hypothesis: no part of the set does what all of it does, because TOFU's facts are independent of
each other and what is not in the coreset stays known, as the generated datasets had it
(`tofu_coreset.py`, `redundancy.py`). Refuted for a method if the forget probability after ten
questions is equivalent to that after forty, and the controls do not forget as much; if they do, it
is not knowledge of the forget set that unlearns.

The search is for what lies nearest gold, of what keeps 0.9 of base's probability on the retain set.
`untouched` stands beside it: continents of countries from the product's own tables, which no
training was shown. (To keep 0.9 of that was asked first: nothing that unlearned did, LOG.md.) RMU
trains three matrices of blocks 5 to 7, NPO adapters on blocks 20 to 29.

Departures from TOFU: forty retain questions of 3,960, five epochs at 1e-3, ten to twenty probes of
each further set. forget01 is two authors, and the questions of one are no independent draws, so
nothing here is said of other authors: intervals over documents are as wide as that makes them.

`--preset quick`: RMU alone, half of the search, two of the controls. `--preset forget05`: RMU alone
on the two hundred questions of forget05, ten authors, so that something can be said of others; two
of them, ten, fifty and all, at a hundred steps, and the controls at fifty. `make smollm2` brings
the model; the data are `TOFU=DIRECTORY`, else the Hub's.
"""

import os
from dataclasses import replace
from pathlib import Path

from rayunlearn.config import Data, Measure, Method, Model, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range
from rayunlearn.models.smollm2 import smollm2_folder

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tofu"
TOFU = os.environ.get("TOFU", str(SHARED) if SHARED.is_dir() else "locuslab/TOFU")
BASE = Trial(
    data=Data(
        name="tofu",
        path=TOFU,
        options="size=01,paraphrased=true",
        limit_retain=40,
        # general text: plain English about everyday things
        probes="untouched=known:continents,general=general_text",
        template="chat",
        max_tokens=128,
    ),
    model=Model(name=str(smollm2_folder()), teach_precision="fastest"),
    method=Method(retain_weight=2.0, layer=7),
    # activations of this model at block 7 are 115 to 170 long
    options=(("rmu.steering", 200.0),),
    train=Train(learning_rate=3e-3, batch_size=4),
    # looked at once, at the end: a look costs as much as ten steps
    stop=Stop(utility_floor=0.0, check_every=40),
    measure=Measure(metrics="probability", limit_probes="forget=40,retain=20,untouched=20,10"),
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
ALONE = {NAMES: (RMU,)}
TEN_AUTHORS = {NAMES: ((*RMU[:-1], 100.0),)} | SEEDS
CONTROLS = QUARTER | {"select.text": ("shuffled_answers", "random_text")}
OTHER = QUARTER | {("select.text", "select.other_split"): (("other_documents", "real_authors"),)}
SELECTORS = QUARTER | {"select.name": ("moderate", "loss", "keyword_coverage")}
AXES = (CURVE, SELECTORS, CONTROLS, OTHER | ALONE)
SEARCH = {
    "train.learning_rate": Range(1e-3, 5e-3, log=True),
    "rmu.steering": Range(50.0, 400.0, log=True),
    "method.retain_weight": Range(1.0, 16.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=8, batch=4)
OBJECTIVE = Objective(forgetting="probability", utility="probability", utility_floor=0.9)
PRESETS = {
    "quick": {
        "AXES": (CURVE | ALONE, CONTROLS | ALONE),
        "BUDGET": Budget(tuning="shared", trials=4, batch=2),
    },
    "forget05": {
        "BASE": replace(
            BASE,
            data=replace(BASE.data, options="size=05,paraphrased=true"),
            stop=replace(BASE.stop, check_every=100),
            measure=replace(
                BASE.measure,
                limit_probes="forget=200,retain=20,untouched=20,paraphrased=40,10",
            ),
        ),
        "AXES": (
            TEN_AUTHORS | {"select.ratio": (0.01, 0.05, 0.25, 1.0)},
            TEN_AUTHORS
            | {"select.ratio": (0.25,), "select.text": ("shuffled_answers", "random_text")},
        ),
        "BUDGET": Budget(tuning="shared", trials=4, batch=4),
    },
}
