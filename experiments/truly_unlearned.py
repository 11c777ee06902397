"""Removed or merely suppressed? LLMU and RMU under the attacks of the black-box study, on a dataset
whose truth is known.

Question: how much of what LLMU and RMU took away do shots, rephrasings and training on unrelated
text recover?

Hypothesis (Doshi & Stickland 2411.12103, on 7 B models): few-shot prompts, rephrased questions and
above all training on unrelated text recover much of it, more from LLMU, which changes what is said,
than from RMU, which changes what is represented. Refuted if no attack's recovered fraction has an
interval above that of the same attack's effect on the gold model, or if RMU recovers more than
LLMU.

`rayunlearn run` goes on with the attacks when all trials have ended. Base and gold are attacked
alike. LLMU is run with its random mismatch (Yao et al. 2310.10683); that study leaves the term out.
On the dataset multiple choice is scored by likelihood: its model writes no letters.

`--preset paper`: that study's runs on its biology articles with both of its models, the same panel.
How it drew its articles is not confirmed (`rayunlearn list recipes`). It counts the letter that is
written, and a model that writes none is wrong everywhere (`letter_written`, measured here too, with
the share that is answered); what is minimised here is `letter_choice`, the highest of the letters A
to D, so that a model that only stops writing letters does not pass for one that has forgotten.
"""

from rayunlearn import recipes
from rayunlearn.config import Data, Measure, Method, Stop, Train, Trial
from rayunlearn.experiment import Attacks, Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.1, check_every=20),
)
AXES = {
    ("method.forget", "method.retain"): (("llmu", "kl"), ("rmu", "activation")),
    "train.seed": (0, 1, 2, 3, 4),
}
SEARCH = {
    "train.learning_rate": Range(3e-4, 1e-2, log=True),
    "rmu.steering": Range(2.0, 30.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=6, batch=3)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)
ATTACKS = Attacks(panel="black_box", trials="grid")

RUNS = (
    "blackbox_llmu_zephyr_biology",
    "blackbox_llmu_llama_biology",
    "blackbox_rmu_zephyr_biology",
    "blackbox_rmu_llama_biology",
)
PRESETS = {
    "paper": {
        "BASE": Trial(
            # pieces of about 1,024 tokens
            data=Data(name="biology", path="biology", options="words=750"),
            stop=Stop(utility_floor=0.0),
            measure=Measure(metrics=recipes.LETTER_SETTINGS),
        ),
        "AXES": tuple(recipes.axis(name) | {"train.seed": (0, 1, 2, 3, 4)} for name in RUNS),
        "SEARCH": {},
        "BUDGET": Budget(tuning="none"),
        "OBJECTIVE": Objective(
            forgetting="letter_choice",
            utility="letter_choice",
            utility_split="retain",
            utility_floor=0.9,
            # as the paper chose: the less is left the better
            target="none",
        ),
    }
}
