"""Does any selector beat random, at equal optimizer steps?

Question: of 5% and 25% of the forget set, chosen by each of the selectors, which unlearns more than
the same number of documents drawn at random? On three corpora: the domain dataset (five mentions
per fact: documents overlap), the people dataset (one question per fact: they do not) and, where
`rayunlearn books` has been run, passages of a real book.

Hypothesis: none does, unless it covers more of the facts than random documents do; the coreset
paper found gains inside the variance of random only. Refuted by a selector whose forgetting lies
under random's on two corpora or more at the same ratio, after Holm's correction over all
comparisons of a corpus, with retain probability at or over 0.9 of base.

Every cell of a corpus takes the same steps and presentations with the same losses and rates, found
by hand for the full forget set; no selector is tuned. Seeds of selection and training move
together: five of random, three of the others. The retain-only control runs by itself. `untouched`,
on the datasets, is what nobody was to forget or reminded of.

`--preset paper`: all of them at 5% and 10% of WMDP-bio with RMU and NPO of the coreset study
(2504.10185), which tried three. Scored as there: options shown, the highest of the letters A to D
(`letter_choice`).

Any file of books serves: `rayunlearn books BOOKS.parquet --forget TITLE --retain TITLE TITLE`
writes runs/books.
"""

from pathlib import Path

from rayunlearn import recipes
from rayunlearn.config import Data, Measure, Method, Select, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective

# without it the two datasets alone
BOOKS = Path("runs/books")

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=5),
    select=Select(extractor="log_odds"),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8),
    stop=Stop(utility_floor=0.1, check_every=30),
)
RMU = (
    "method.forget",
    "method.retain",
    "method.retain_weight",
    "train.learning_rate",
    "rmu.steering",
)
NPO = ("method.forget", "method.retain", "train.learning_rate", "npo.beta")
DOMAIN = {
    ("data.name", "train.length", *RMU): (("domain", 100.0, "rmu", "activation", 5.0, 6e-3, 20.0),)
}
# answers are values that both sides give
PEOPLE = {("data.name", "select.extractor", *NPO): (("people", "tfidf", "npo", "nll", 2e-3, 0.2),)}
PROSE = (
    "data.name",
    "data.path",
    "data.template",
    "data.probe_forget",
    "data.probe_retain",
    "model.teach_epochs",
)
PASSAGES = ("files", str(BOOKS.resolve()), "{prompt}", "probe_forget", "probe_retain", 60)
READ = (
    {(*PROSE, *NPO): ((*PASSAGES, "npo", "nll", 1e-3, 0.03),)}
    if (BOOKS / "manifest.json").is_file()
    else None
)

HEURISTICS = (
    "min_k",
    "min_k_plus",
    "zlib",
    "moderate",
    "grand",
    "loss",
    "el2n",
    "k_center",
    "herding",
    "facility_location",
)
HEURISTICS += ("upcore", "keyword_coverage", "ccs", "craig", "influence")
SEEDS = ("select.seed", "train.seed")
RANDOM = {"select.name": ("random",), "select.ratio": (0.05, 0.25, 1.0), SEEDS: (0, 1, 2, 3, 4)}
OTHERS = {"select.name": HEURISTICS, "select.ratio": (0.05, 0.25), SEEDS: (0, 1, 2)}

AXES = tuple(
    corpus | coresets
    for corpus in (DOMAIN, PEOPLE, READ)
    if corpus
    for coresets in (RANDOM, OTHERS)
)
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)

PRESETS = {
    "paper": {
        "BASE": Trial(
            data=Data(name="wmdp-bio", path="wmdp", options="corpora=true,documents=600"),
            stop=Stop(utility_floor=0.0),
            measure=Measure(metrics=recipes.LETTER_SETTINGS),
        ),
        "AXES": tuple(
            recipes.axis(name) | coresets
            for name in ("coreset_rmu_wmdp", "coreset_npo_wmdp")
            for coresets in (
                RANDOM | {"select.ratio": (0.05, 0.1, 1.0)},
                OTHERS | {"select.ratio": (0.05, 0.1)},
            )
        ),
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
