"""How much of TOFU's forget10 is needed, and does the answer depend on the loss or only on its
learning rate?

Question: 400 questions about 20 invented authors (forget10) are to be forgotten, 200 about others
kept. Does a part of the 400 do, chosen at random or by min-k, and is that true of NPO and of
gradient ascent with a retain loss alike?

Hypothesis: no. TOFU's facts are independent of each other, so what is not in the coreset stays
known: with NPO the forget probability rises steadily as the ratio falls. Gradient ascent was once
seen to forget alike from 5% and from 100%, at lower utility; here both losses have their learning
rate tuned under the same utility floor (0.9 of base), and the difference should go.

What would refute it: at 5% of the documents a loss whose forget probability lies within its
interval at 100%, with utility at or over the floor and clearly lower than the retain-only
control's (which trains the same steps without a forget loss, so it shows what drift alone does).

Two values change for the real thing, both below: TOFU = "locuslab/TOFU" takes the data set from the
Hub (or: `TOFU=DIRECTORY rayunlearn run ...`), and
MODEL = Model(name="meta-llama/Llama-3.2-1B-Instruct", teach_epochs=5, teach_learning_rate=1e-5)
 trains a real Llama first, as the TOFU paper does (2401.06121: 5 epochs
at 1e-5). Where there is no such directory the run is version `generated`: the same question of the
synthetic dataset `people`, whose layout is TOFU's, and says nothing of TOFU.

As it stands a model of 0.75 million parameters is trained from scratch: it knows these 600
questions and no English beyond them, so generalisation to paraphrases is weaker than a pre-trained
model's. Gold is the same without forget10.
"""

import os
from pathlib import Path

from rayunlearn.config import Data, Method, Model, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tofu"
TOFU = os.environ.get("TOFU", str(SHARED))
IS_THERE = str(SHARED) != TOFU or SHARED.is_dir()
MODEL = Model(name="scratch", size="tiny", teach_epochs=30)

BASE = Trial(
    # its loader knows which twenty questions are about one author: intervals draw them together
    data=Data(name="tofu", path=TOFU, options="size=10", limit_retain=200)
    if IS_THERE
    else Data(name="people", size="tiny"),
    model=MODEL,
    method=Method(forget="npo", retain="nll"),
    train=Train(batch_size=8, length=120, unit="steps"),
)

AXES = {
    "method.forget": ("npo", "ga"),
    "select.name": ("random", "min_k"),
    "select.ratio": (0.05, 0.25, 0.5, 1.0),
    ("select.seed", "train.seed"): ((0, 0), (1, 1)),
}

# A model made from nothing stands, and needs, other rates than a pre-trained one. Seen once with
# the former, NPO, beta
# 0.1, 80 steps on all 400 documents: 3e-4 gives forget 0.19, retain 0.68; 1e-3 gives forget 0.08,
# retain 0.94.
SEARCH = {
    "train.learning_rate": (
        Range(1e-4, 3e-3, log=True) if MODEL.name == "scratch" else Range(3e-6, 1e-4, log=True)
    ),
    "npo.beta": Range(0.03, 0.3, log=True),
}

VERSION = "1" if IS_THERE else "generated"
BUDGET = Budget(tuning="shared", trials=8, batch=4)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)
