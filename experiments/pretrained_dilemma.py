"""Is what a real language model has unlearned only out of sight, and what did it cost?

After "Understanding the Dilemma of Unlearning" (unPact, 2509.24675), on SmolLM2-135M-Instruct and
capitals of Europe that it knows without any training: which words of a question its answer hung on
before and after unlearning, which share of the questions that it does not answer any more it
answers again when those words are named once more, and which share of the retain questions it lost.

Hypothesis (the paper's): emphasis recovers a part of the answers, or the retain side is lost.
Refuted for a method if key words recover no more than the same number of random words do (paired
intervals overlap zero) while nine tenths of the retain questions stay.

Three methods, and NPO with a loss of the documents' key words alone, which the paper's analysis
asks for and does not try. Rate, retain weight and steering are those that `pretrained_coreset.py
--preset quick` found for RMU and NPO (LOG.md); gradient ascent has NPO's. Nothing is tuned anew.
Five seeds; the questions of eight facts a set are taken apart, at base and at the unlearned model.
`--preset quick`: two methods, all twenty forget questions and no others. (Six facts of three sets
were too few: of a half no word is a key word, and base must know the rest.) `make smollm2` brings
the model.
"""

from dataclasses import replace

from rayunlearn.config import Data, Explain, Measure, Method, Model, Stop, Train, Trial
from rayunlearn.data.known import known_facts, read_relation
from rayunlearn.experiment import Budget, Objective
from rayunlearn.models.smollm2 import smollm2_folder

CAPITALS = ",".join(fact.key for fact in known_facts(read_relation("capitals"), "Europe"))
LOWER = ("none", "5,6,7", "down_proj", 40.0, 4.086e-4, 9.955)
UPPER = ("lora", "20,21,22,23,24,25,26,27,28,29", ".*", 12.0, 8.122e-4, 5.561)
BASE = Trial(
    data=Data(name="known", options="limit=20", template="chat", max_tokens=96),
    model=Model(name=str(smollm2_folder()), teach=False),
    method=Method(layer=7),
    options=(("rmu.steering", 70.71),),
    train=Train(batch_size=4),
    # looked at once, at the end: a look costs as much as ten steps
    stop=Stop(utility_floor=0.0, check_every=40),
    measure=Measure(metrics="probability,key_probability"),
    explain=Explain(documents=8, wording="Focus on {words}."),
)
NAMES = (
    "method.forget",
    "method.retain",
    "train.adapter",
    "train.layers",
    "train.parameters",
    "train.length",
    "train.learning_rate",
    "method.retain_weight",
    "token.words",
)
METHODS = (
    ("rmu", "activation", *LOWER, ""),
    ("npo", "nll", *UPPER, ""),
    ("npo", "nll", *UPPER, CAPITALS),
    ("ga", "nll", *UPPER, ""),
)
SEEDS = {"train.seed": (0, 1, 2, 3, 4)}
AXES = {NAMES: METHODS} | SEEDS
SEARCH = {}
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(
    forgetting="key_probability",
    utility="key_probability",
    utility_split="untouched",
    utility_floor=0.9,
)
PRESETS = {
    "quick": {
        "BASE": replace(
            BASE,
            explain=Explain(documents=20, splits="forget", wording="Focus on {words}."),
        ),
        "AXES": {NAMES: METHODS[:2]} | SEEDS,
    }
}
