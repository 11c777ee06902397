"""What is it that a few documents of a real language model's own knowledge do?

SmolLM2-135M-Instruct is asked for facts, and twenty capitals of Europe that it knows without any
training are the forget set. A few of them unlearn like all of them (LOG.md). Is that knowledge of
the forget set, of its relation, or would any few documents do?

Hypothesis: a quarter of the documents (five) forgets what all twenty do, since the model forgets
over the relation and not fact by fact. Then capitals that no trial was shown (`near`) fall as far
as the forget set, and as many documents of another relation, the same questions with each other's
answers, random text and the keywords alone do not do the same. Refuted if five documents leave more
than twenty (intervals apart), if `near` keeps what the forget set loses, or if a control forgets as
much.

Measured is the key word inside its sentence (`key_probability`): the probability of a whole
sentence falls too where only its beginning is lost. Tuned per method at the full forget set: least
key probability left, of what keeps 0.9 of base's on `untouched` (languages and currencies, never
shown). A retain loss alone teaches the form of the answers, so base is no ceiling here; the control
is. There is no gold: nobody has this model without its capitals. RMU trains three matrices of
blocks 5 to 7, NPO adapters on blocks 20 to 29.

`--preset quick`: three ratios, shuffled answers, random text and another relation as controls, no
selectors. `--preset languages`: RMU at the settings that the capitals were tuned to, on the
languages of Europe, with capitals untouched: does it hold for another relation, without a search of
its own? `make smollm2` brings the model.
"""

from dataclasses import replace

from rayunlearn.config import Data, Measure, Method, Model, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range
from rayunlearn.models.smollm2 import smollm2_folder

UPPER_BLOCKS = "20,21,22,23,24,25,26,27,28,29"
BASE = Trial(
    data=Data(
        name="known",
        options="limit=20",
        template="chat",
        max_tokens=96,
        # plain English about everyday things: `probability` of its tokens, as it has no key
        probes="general=general_text",
    ),
    model=Model(name=str(smollm2_folder()), teach=False),
    method=Method(retain_weight=4.0, layer=7),
    # activations of this model at block 7 are 115 to 170 long
    options=(("rmu.steering", 200.0),),
    train=Train(learning_rate=1e-3, batch_size=4),
    # looked at once, at the end: a look costs as much as ten steps
    stop=Stop(utility_floor=0.0, check_every=40),
    measure=Measure(metrics="probability,key_probability,completion_probability"),
)
METHODS = {
    (
        "method.forget",
        "method.retain",
        "train.adapter",
        "train.layers",
        "train.parameters",
        "train.length",
    ): (
        ("rmu", "activation", "none", "5,6,7", "down_proj", 40.0),
        ("npo", "nll", "lora", UPPER_BLOCKS, ".*", 12.0),
    )
}
SEEDS = {("select.seed", "train.seed"): (0, 1, 2, 3, 4)}
QUARTER = METHODS | SEEDS | {"select.ratio": (0.25,)}
# one, two, five, ten and all twenty
CURVE = METHODS | SEEDS | {"select.ratio": (0.05, 0.1, 0.25, 0.5, 1.0)}
SELECTORS = QUARTER | {"select.name": ("moderate", "loss", "keyword_coverage")}
CONTROLS = (
    QUARTER | {"select.text": ("shuffled_answers", "random_text", "keywords_only", "random_words")},
    QUARTER | {("select.text", "select.other_split"): (("other_documents", "far"),)},
)
AXES = (CURVE, SELECTORS, *CONTROLS)
SEARCH = {
    "train.learning_rate": Range(3e-4, 3e-3, log=True),
    "rmu.steering": Range(50.0, 400.0, log=True),
    "method.retain_weight": Range(2.0, 16.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=8, batch=4)
OBJECTIVE = Objective(
    forgetting="key_probability",
    utility="key_probability",
    utility_split="untouched",
    utility_floor=0.9,
)
PRESETS = {
    "quick": {
        "AXES": (
            CURVE | {"select.ratio": (0.05, 0.25, 1.0)},
            QUARTER | {"select.text": ("shuffled_answers", "random_text")},
            CONTROLS[1],
        ),
        "BUDGET": Budget(tuning="shared", trials=4, batch=4),
    },
    "languages": {
        "BASE": replace(
            BASE,
            data=replace(BASE.data, options="forget=languages:Europe,untouched=capitals,limit=20"),
            method=Method(forget="rmu", retain="activation", retain_weight=9.955, layer=7),
            options=(("rmu.steering", 70.71),),
            train=replace(
                BASE.train,
                learning_rate=4.086e-4,
                length=40.0,
                layers="5,6,7",
                parameters="down_proj",
            ),
        ),
        "AXES": (
            SEEDS | {"select.ratio": (0.05, 0.25, 1.0)},
            SEEDS | {"select.ratio": (0.25,), "select.text": ("shuffled_answers", "random_text")},
            SEEDS
            | {
                "select.ratio": (0.25,),
                ("select.text", "select.other_split"): (("other_documents", "far"),),
            },
        ),
        "SEARCH": {},
        "BUDGET": Budget(tuning="none"),
    },
}
