"""Which methods unlearn a real language model's own knowledge best, once all retain the same?

Six forget losses on SmolLM2-135M-Instruct, twenty capitals of Europe that it knows without any
training, ranked by the key word that is left (`key_probability`): as training left the models, and
after each has been interpolated towards base until it keeps 0.95 of base's on `untouched`
(languages and currencies, which no training is shown), as "Unlearning with Control" (2406.09179)
compares methods.

Hypothesis: the order changes, because methods pay for forgetting with knowledge beside it. Refuted
if no pair of methods changes places with both differences significant after Holm's correction, and
no method's ranks before and after have intervals that lie apart.

Rate and retain weight are tuned for each by the calibrated score. Five seeds; all at the full
forget set. RMU and adaptive RMU train three matrices of blocks 5 to 7, the others adapters on
blocks 20 to 29, so what is compared is a method as it is run here and not its loss alone.
`--preset quick` has three methods. `make smollm2` brings the model.
"""

from rayunlearn.config import Calibrate, Data, Measure, Method, Model, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range
from rayunlearn.models.smollm2 import smollm2_folder

LOWER = ("none", "5,6,7", "down_proj", 40.0)
UPPER = ("lora", "20,21,22,23,24,25,26,27,28,29", ".*", 12.0)
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
    # a ruined model is interpolated towards base like any other
    # looked at once, at the end: a look costs as much as ten steps
    stop=Stop(utility_floor=0.0, check_every=40),
    measure=Measure(metrics="probability,key_probability,completion_probability"),
    calibrate=Calibrate(tau=0.95, beside=0.0, retention="key_probability", split="untouched"),
)
METHODS = (
    ("rmu", "activation", *LOWER),
    ("npo", "nll", *UPPER),
    ("ga", "nll", *UPPER),
    ("simnpo", "nll", *UPPER),
    ("adaptive_rmu", "activation", *LOWER),
    ("idk", "nll", *UPPER),
)
NAMES = (
    "method.forget",
    "method.retain",
    "train.adapter",
    "train.layers",
    "train.parameters",
    "train.length",
)
SEEDS = {("select.seed", "train.seed"): (0, 1, 2, 3, 4)}
AXES = {NAMES: METHODS} | SEEDS
SEARCH = {
    "train.learning_rate": Range(3e-4, 3e-3, log=True),
    "rmu.steering": Range(50.0, 400.0, log=True),
    "method.retain_weight": Range(2.0, 16.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=6, batch=3)
OBJECTIVE = Objective(
    forgetting="key_probability",
    utility="key_probability",
    utility_split="untouched",
    stage="calibrated",
)
PRESETS = {
    "quick": {
        "AXES": {NAMES: METHODS[:3]} | SEEDS,
        "BUDGET": Budget(tuning="shared", trials=4, batch=4),
    }
}
