"""Is what unlearns best before relearning also what lasts? Four methods, tuned once for what is
left as they end and once for what is left after relearning.

Question: tuning decides a method's row, and all tuning so far was for the moment at which training
ends. Are methods that are tuned for after relearning other methods, in their settings and in what
an attacker gets? And is the order of the methods then another?

Hypothesis: yes to both. RepSelect (2606.17168) selects by knowledge after relearning for this
reason, and the tampering literature finds methods that hide (NPO, gradient ascent) fall back
further than those that change representations (RMU). Refuted for a method if what relearning leaves
does not differ between its two tunings (paired over seeds and documents, Holm over methods);
refuted for the order if no pair of methods changes places with both differences shown.

Every trial relearns its own model at its end: 20 steps of 4 forget documents, the same for all, so
that attackers have equal budgets; base and gold too. Gold's value after the same attack is the
floor of what can be asked: a model that never saw the facts learns that much from the attack. The
controls are the retain loss alone, relearned in the same way. Utility is that of before the attack.
What is left is minimised, however far below gold (`target="none"`): an attacker gains by any of it.
Five seeds, sixteen trials of tuning for each method and each aim; trial 0 of both is the same.

Three commands:

    rayunlearn run experiments/lasting.py
    rayunlearn run experiments/lasting.py --preset before
    python -m experiments.findings.lasting runs/lasting/1 runs/lasting/1-before
"""

from rayunlearn.config import Data, Measure, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1, retain_weight=3.0),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.1, check_every=20),
    # also where it is not what is minimised
    measure=Measure(attack="relearning"),
    options=(("relearning.learning_rate", 1e-3), ("relearning.steps", 20)),
)
AXES = {
    ("method.forget", "method.retain"): (
        ("npo", "nll"),
        ("rmu", "activation"),
        ("ga", "nll"),
        ("idk", "nll"),
    ),
    "train.seed": (0, 1, 2, 3, 4),
}
SEARCH = {
    "train.learning_rate": Range(5e-4, 5e-3, log=True),
    "method.retain_weight": Range(1.0, 8.0, log=True),
    "npo.beta": Range(0.005, 0.1, log=True),
    "rmu.steering": Range(2.0, 60.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=16, batch=4)
OBJECTIVE = Objective(
    forgetting="probability",
    utility="probability",
    utility_split="retain",
    utility_floor=0.9,
    stage="attacked",
    attack="relearning",
    target="none",
)
PRESETS = {
    "before": {
        "OBJECTIVE": Objective(
            forgetting="probability",
            utility="probability",
            utility_split="retain",
            utility_floor=0.9,
            target="none",
        )
    }
}
