"""Is a model unlearned on a coreset the model that the full forget set gives, or only as
forgetful?

Question: for each ratio, against the full-set model of the same seed: how high is the barrier on
the straight line between the two, on how many questions do they agree, do their answers hang on the
same words, and do attacks recover as much?

Hypothesis (Pal et al. 2504.10185, section 6): coreset models lie in the same basin; no barrier in
forgetting down to a ratio of 5%, and attacks find no difference. Refuted at a ratio where the
interval of the barrier to the full-set model lies above 0.1, or where an attack recovers more than
from the full-set model and the intervals lie apart.

The control for the barrier is the method's own: `rayunlearn path RUN TRIAL OTHER` between full-set
models of two seeds. Where that is as high, the barrier is how the method forgets and no doing of
the coreset (so it was with NPO, LOG.md).

`--preset paper`: RMU and NPO of that study on WMDP-bio; it looks at six points of the line, which
are among the eleven here, and at forgetting alone. Scored as there: options shown, the highest of
the letters A to D (`letter_choice`), along the line too (table `curves`; the barriers of the report
are of answer probability). The attacks are ours.

When all trials have ended `rayunlearn run` goes on with the attacks: relearning on ten forget
documents, equal steps on ten unrelated ones (its control, and an attack), four-bit weights and
retain shots, on every cell, base and gold. One attack seed per model and five models per cell: the
intervals are over models. Relearning had an answer probability of 0.91 (NPO, 25%) and 0.71 (RMU,
full set) back after ten of its fifty steps and 0.93 and 0.88 in the end (one model each, by hand),
so the area under the curve stands beside what is back in the end.
"""

from rayunlearn import recipes
from rayunlearn.config import Data, Explain, Measure, Method, Stop, Train, Trial
from rayunlearn.experiment import Attacks, Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.1, check_every=20),
    explain=Explain(documents=24, wording="{words}.", path_points=11),
)
AXES = {
    ("method.forget", "method.retain"): (("npo", "nll"), ("rmu", "activation")),
    "select.ratio": (0.05, 0.25, 1.0),
    ("select.seed", "train.seed"): (0, 1, 2, 3, 4),
}
SEARCH = {
    "train.learning_rate": Range(5e-4, 3e-3, log=True),
    "npo.beta": Range(0.005, 0.1, log=True),
    "rmu.steering": Range(2.0, 30.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=4, batch=2)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)

PRESETS = {
    "paper": {
        "BASE": Trial(
            data=Data(name="wmdp-bio", path="wmdp", options="corpora=true,documents=600"),
            stop=Stop(utility_floor=0.0),
            measure=Measure(metrics=recipes.LETTER_SETTINGS),
            explain=Explain(documents=64, path_points=11),
        ),
        "AXES": tuple(
            recipes.axis(name)
            | {
                "select.ratio": (0.01, 0.05, 0.1, 1.0),
                ("select.seed", "train.seed"): (0, 1, 2, 3, 4),
            }
            for name in ("coreset_rmu_wmdp", "coreset_npo_wmdp")
        ),
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
ATTACKS = Attacks(panel="coresets", trials="grid")
