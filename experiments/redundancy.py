"""How little is enough when facts are told seldom, or often? And is what counts the share of facts that is covered?

Question: does forgetting follow the share of the forget set's facts that the coreset states, one curve for all ratios and
redundancies; does the coverage of keywords, which needs no list of facts, stand in for it; and does a selector that covers more keywords
beat random documents of equal number?

Hypothesis: yes, three times. Refuted (1) if the unlearned share of a bed that was left out is predicted no better from the covered
facts of the other beds than from the ratio; (2) if keyword coverage predicts it no better than the ratio either; (3) if
`keyword_coverage` at 10 % does not forget more than random, paired over ten seeds.

Beds of 20, 10 and 5 documents per fact, each tuned once per method on its full set. NPO is left out at 5: it forgets the
domain too slowly there to say anything of coresets (experiments/LOG.md). Coverage is measured before any training.
"""

from rayunlearn import recipes
from rayunlearn.config import Data, Method, Select, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny"),
    select=Select(extractor="slots"),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.1, check_every=20),
)
SEEDS = ("select.seed", "train.seed")
BEDS = (
    {("method.forget", "method.retain"): (("rmu", "activation"),), "data.redundancy": (5, 10, 20)},
    {("method.forget", "method.retain"): (("npo", "nll"),), "data.redundancy": (10, 20)},
)
CURVE = {"select.name": ("random",), "select.ratio": (0.025, 0.05, 0.25, 1.0), SEEDS: (0, 1, 2)}
PAIRED = {"select.name": ("random", "keyword_coverage"), "select.ratio": (0.1,), SEEDS: tuple(range(10))}
AXES = tuple(bed | part for bed in BEDS for part in (CURVE, PAIRED))
SEARCH = {
    "train.learning_rate": Range(5e-4, 5e-3, log=True),
    "npo.beta": Range(0.005, 0.1, log=True),
    "rmu.steering": Range(5.0, 30.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=6, batch=3)
OBJECTIVE = Objective(forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9)

# Facts are not known on real corpora, so keyword coverage stands alone there. TOFU tells every fact once, MUSE-Books often.
REAL_CURVE = {"select.name": ("random",), "select.ratio": (0.01, 0.05, 0.1, 0.25, 1.0), SEEDS: (0, 1, 2, 3, 4)}
REAL_PAIRED = {"select.name": ("random", "keyword_coverage"), "select.ratio": (0.05,), SEEDS: tuple(range(10))}
CORPORA = (
    (recipes.axis("npo_tofu_open_unlearning"), {("data.name", "data.path"): (("tofu", "tofu"),)}),
    (recipes.axis("npo_muse_books"), {("data.name", "data.path"): (("muse-books", "muse-books"),)}),
)
PRESETS = {
    "paper": {
        "BASE": Trial(select=Select(extractor="tfidf")),
        "AXES": tuple(run | corpus | part for run, corpus in CORPORA for part in (REAL_CURVE, REAL_PAIRED)),
        "SEARCH": {},
        "BUDGET": Budget(tuning="none"),
        "OBJECTIVE": Objective(forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.8),
    }
}
