"""Is a real language model's own knowledge removed, or merely suppressed?

LLMU and RMU on SmolLM2-135M-Instruct, twenty capitals of Europe that it knows without any training,
under the black-box study's shots, rephrasings and training on unrelated text (Doshi & Stickland
2411.12103), and under relearning: of the forget set, and of half of its facts with the other half
asked (2410.08827).

Hypothesis: training on unrelated text and shots recover a part of what was taken, more from LLMU
than from RMU; and relearning ten facts recovers the other ten, which says that they were hidden
and not removed. Refuted if no attack recovers more than the same attack gains on the control
(intervals overlap), or if held-out relearning recovers nothing.

Measured is the key word inside its sentence. There is no gold model; base and the retain-only
control are attacked alike. The panel is short and its rates are those of a loaded model
(`pretrained` in docs/attacks.md). Settings are tuned on the unattacked score: what keeps 0.9 of
base on `untouched`. `make smollm2` brings the model.

`--preset quick`: three tuning trials a method, and nothing attacked by itself. Three attacks of
the panel are then

    rayunlearn attack runs/pretrained_unlearned/1-quick --trials grid --panel pretrained \\
      --attacks relearning,heldout_relearning,few_shot_retain
"""

from rayunlearn.config import Data, Measure, Method, Model, Stop, Train, Trial
from rayunlearn.experiment import Attacks, Budget, Objective, Range
from rayunlearn.models.smollm2 import smollm2_folder

BASE = Trial(
    data=Data(name="known", options="limit=20", template="chat", max_tokens=96),
    model=Model(name=str(smollm2_folder()), teach=False),
    method=Method(retain_weight=4.0, layer=7),
    options=(("rmu.steering", 200.0),),
    train=Train(learning_rate=1e-3, batch_size=4),
    # looked at once, at the end: a look costs as much as ten steps
    stop=Stop(utility_floor=0.0, check_every=40),
    measure=Measure(metrics="probability,key_probability"),
)
METHODS = (
    ("rmu", "activation", "none", "5,6,7", "down_proj", 40.0),
    ("llmu", "kl", "lora", "20,21,22,23,24,25,26,27,28,29", ".*", 12.0),
)
AXES = {
    (
        "method.forget",
        "method.retain",
        "train.adapter",
        "train.layers",
        "train.parameters",
        "train.length",
    ): METHODS,
    "train.seed": (0, 1, 2, 3, 4),
}
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
    utility_floor=0.9,
)
ATTACKS = Attacks(panel="pretrained", trials="grid")
PRESETS = {
    "quick": {
        "BUDGET": Budget(tuning="shared", trials=3, batch=3),
        "ATTACKS": Attacks(trials="grid"),
    }
}
