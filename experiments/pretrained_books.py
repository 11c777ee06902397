"""How much of a book does a real language model need to unlearn it?

SmolLM2-135M-Instruct is first trained on passages of a book and on passages of two others (base),
and on the two others alone (gold), as MUSE-books does (2407.06460). Each passage is asked by its
first half; its second half is the answer. Then all passages of the book, a quarter or a twentieth
of them unlearn. The controls train as many steps on a quarter: random text of the passages'
length, other passages of the same book that base was not trained on (`near`), and on the retain
loss alone.

Hypothesis: no part of the passages does what all of them do, because each is remembered by itself.
Refuted for a method if what a quarter leaves is equivalent to what all leave, with the
retain passages kept; if the controls forget as much, it is not memory of the book that unlearns.

The search is for what lies nearest gold, of what keeps 0.9 of base's probability on the retain
passages. `untouched` stands beside it: passages of a book that no training was shown, of which base
knows next to nothing, so that they cannot be the floor (tried, LOG.md). RMU trains three matrices
of blocks 5 to 7, NPO adapters on blocks 20 to 29.

Departures from MUSE: forty passages of 48 words in place of a book, verbatim memory alone (the
texts bring no questions about their content). The passages are written by

    rayunlearn books BOOKS --forget "Alice's Adventures in Wonderland" --retain "A Study in Scarlet"
      "The Wonderful Wizard of Oz" --untouched "A Tale of Two Cities" --passages 40
      --retain-passages 20 --near 20 --output runs/books-real

where BOOKS is any file of books with the columns title and text (Project Gutenberg's, say);
another folder is `BOOKS=DIRECTORY`. `--preset rmu`: RMU alone, half of the search. `--preset
quick`: the same without selectors. `make smollm2` brings the model.
"""

import os
from pathlib import Path

from rayunlearn.config import Data, Measure, Method, Model, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range
from rayunlearn.models.smollm2 import smollm2_folder

BOOKS = os.environ.get("BOOKS", str(Path("runs/books-real").absolute()))
BASE = Trial(
    data=Data(
        name="files",
        path=BOOKS,
        template="{prompt}",
        probe_forget="probe_forget",
        probe_retain="probe_retain",
        # general text: plain English about everyday things
        probes="near=near,untouched=untouched,general=general_text",
        max_tokens=128,
    ),
    model=Model(name=str(smollm2_folder()), teach_precision="fastest"),
    method=Method(retain_weight=4.0, layer=7),
    # activations of this model at block 7 are 115 to 170 long
    options=(("rmu.steering", 200.0),),
    train=Train(learning_rate=1e-3, batch_size=4),
    # looked at once, at the end: a look costs as much as ten steps
    stop=Stop(utility_floor=0.0, check_every=40),
    measure=Measure(metrics="probability,extraction_strength", limit_probes="forget=40,20"),
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
SAME_BOOK = {("select.text", "select.other_split"): (("other_documents", "near"),)}
SELECTORS = QUARTER | {"select.name": ("moderate", "loss", "keyword_coverage")}
AXES = (CURVE, SELECTORS, QUARTER | RANDOM, QUARTER | SAME_BOOK)
SEARCH = {
    "train.learning_rate": Range(5e-4, 5e-3, log=True),
    "rmu.steering": Range(50.0, 400.0, log=True),
    "method.retain_weight": Range(1.0, 8.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=8, batch=4)
OBJECTIVE = Objective(forgetting="probability", utility="probability", utility_floor=0.9)
ALONE = {NAMES: (RMU,)}
QUICK = (CURVE | ALONE, QUARTER | RANDOM | ALONE, QUARTER | SAME_BOOK | ALONE)
SMALL = Budget(tuning="shared", trials=4, batch=4)
PRESETS = {
    "quick": {"AXES": QUICK, "BUDGET": SMALL},
    "rmu": {"AXES": (*QUICK, SELECTORS | ALONE), "BUDGET": SMALL},
}
