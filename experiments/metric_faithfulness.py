"""Which metric of forgetting tells a model that knows from one that never did, and still does when
the model is relearned or rounded?

Question: pools of models that have the knowledge (base) and of models that never had it (gold),
over model seeds, wordings of the prompt, documents that state a fact, and sizes; the AUC with which
every metric tells them apart, and the robustness R (relearning) and Q (NF4) of OpenUnlearning
(2506.12618, sec. 4.1) over three unlearning methods. Beside it stands the order-keeping table of
experiments/metric_robustness.py over the same attacks.

Hypothesis, theirs and that of UDS (2605.24614): extraction strength is among the most faithful and
robust metrics of what is said, and activation patching (`unlearning_depth`) is above all of them.
Refuted if `unlearning_depth` has an AUC whose interval lies under that of another metric, or a
robustness (the harmonic mean of R and Q) under that of extraction strength.

Metrics that compare with base or gold are 0 or 1 on these two by definition: they are judged on
base and gold after rounding and after training on unrelated text. The datasets of a pair differ
from the others' with the seed, so a pair is what is drawn: intervals are over pairs. The unlearned
models are three methods at rates that forget visibly (experiments/metric_robustness.py), nothing
is tuned.

`rayunlearn run experiments/metric_faithfulness.py` goes on with the attacks; the report shows both
tables. A new metric is in both by being listed: `measure.metrics` is `all`.
"""

from rayunlearn.config import Data, Measure, Method, Stop, Train, Trial
from rayunlearn.experiment import Attacks, Budget, Objective

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8),
    stop=Stop(utility_floor=0.0),
    measure=Measure(metrics="all", max_new_tokens=12, samples=4, limit_probes="40"),
)
METHODS = ("method.forget", "method.retain", "train.learning_rate")
SEEDS = ("data.seed", "model.seed", "train.seed")
PLAIN = "Question: {prompt}\nAnswer:"
OTHER_WORDS = "Please say: {prompt}\nIt is:"
AXES = (
    {
        SEEDS: ((0, 0, 0), (1, 1, 1), (2, 2, 2)),
        METHODS: (("npo", "nll", 3e-3), ("idk", "nll", 3e-3), ("rmu", "activation", 3e-3)),
    },
    # the pools are wider than what is unlearned: one method, for the attacks' sake
    {
        (*SEEDS, "data.template", "data.redundancy"): (
            (3, 3, 3, OTHER_WORDS, 20),
            (4, 4, 4, PLAIN, 10),
            (5, 5, 5, OTHER_WORDS, 10),
        ),
        METHODS: (("rmu", "activation", 3e-3),),
    },
    {
        (*SEEDS, "model.size"): ((6, 6, 6, "small"),),
        METHODS: (("rmu", "activation", 3e-3),),
    },
)
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(
    forgetting="extraction_strength",
    utility="probability",
    utility_split="retain",
    utility_floor=0.9,
)
ATTACKS = Attacks(panel="metric_faithfulness", trials="grid")
