"""Which metric of forgetting can be trusted: whose values over many unlearned models keep their
order when the models are attacked?

Question: 36 models (six methods x three ratios x two seeds) on the tiny domain dataset, measured by
every metric that has a value per question, as they are and after each of four attacks: a jailbreak
prompt, relearning, random tokens in the question, and the answer read from a layer in the middle
(`linear_shortcut`). After "Unlearning with Control" (2406.09179), which chose extraction strength
so, on TOFU with two models of 1.3 and 7 B.

Hypothesis, theirs: extraction strength keeps the order best (correlation before and after) and
perplexity and ROUGE do not. What would refute it: a metric whose smallest correlation over the four
attacks lies above that of extraction strength with its whole interval, or extraction strength
itself under 0.5 in some attack.

The rates are by hand, of the four that experiments/methods.py tried: those at which the full
forget set is forgotten visibly, at whatever cost; the smaller ratios forget less, so the models
spread over the range. Nothing is tuned here and nothing stops early. Intervals are over the 18
cells. On the same dataset with five documents per fact most models forgot next to nothing, and a
correlation hung on one or two of them (LOG.md).

`rayunlearn run experiments/metric_robustness.py` goes on with the attacks; the report shows the
table.
"""

from rayunlearn.config import Data, Measure, Method, Stop, Train, Trial
from rayunlearn.experiment import Attacks, Budget, Objective

# letters are left out: the dataset's model was trained answers, not letters; reference_score and
# base_kl compare with base
METRICS = (
    "probability,sequence_probability,option_probability,multiple_choice,multiple_choice_sum,"
    "truth_ratio,exact_memorization,extraction_strength,extraction_strength_paraphrase,perplexity,"
    "base_kl,loss_score,zlib_score,reference_score,min_k_score,min_k_plus_score,"
    "gradient_norm_score,rouge_l_recall,rouge_l_f1,verbatim_memorization,knowledge_memorization,"
    "leak_at_k,repetition,ngram_entropy,syntactic_sanity"
)

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8),
    stop=Stop(utility_floor=0.0),
    measure=Measure(metrics=METRICS, max_new_tokens=12, samples=4),
)
METHODS = ("method.forget", "method.retain", "train.learning_rate")
AXES = {
    METHODS: (
        ("ga", "nll", 1e-3),
        ("npo", "nll", 3e-3),
        ("dpo", "nll", 3e-3),
        ("undial", "nll", 3e-3),
        ("idk", "nll", 3e-3),
        ("rmu", "activation", 3e-3),
    ),
    "select.ratio": (0.05, 0.25, 1.0),
    ("select.seed", "train.seed"): ((0, 0), (1, 1)),
}
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(
    forgetting="extraction_strength",
    utility="extraction_strength",
    utility_split="untouched",
    utility_floor=0.9,
)
ATTACKS = Attacks(panel="metrics", trials="grid")
