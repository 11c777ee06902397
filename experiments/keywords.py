"""Do keywords alone suffice, beside the same number of random words?

Question: the forget documents are unlearned whole, as their keywords in order, as the words that
are no keywords, as the same number of random words, and as their keywords shuffled; the full forget
set of them and a random quarter, at equal optimizer steps. The share of answer tokens that is left
stands in `text_kept` of every trial.

Hypothesis: keywords alone forget as the whole documents do (the coreset paper keeps 82 to 89% of
the gain with an LLM's keywords, and shows no control), and random words of the same number forget
less. Refuted if random words forget no less than keywords, or if what is left without keywords
forgets like the whole.

Keywords are the best of at most three words in ten: on the domain dataset those of `slots` (names
and values, F1 0.96 against the generator's terms at this redundancy), on a book those of `tfidf`.
The people dataset has no part in this: an answer there is one word, so four of the five arms are
one text and the fifth is empty.

`--preset paper`: RMU of the coreset study (2504.10185) on WMDP-bio, the whole documents for its
presentations and the other texts for the 300 epochs that it gives keywords at every ratio. Its
judge was OpenAI's o1; here it is an open chat model with our own prompt. It has keywords alone; the
other texts are ours. Scored as there: options shown, the highest of the letters A to D
(`letter_choice`).

Any file of books serves: `rayunlearn books BOOKS.parquet --forget TITLE --retain TITLE TITLE`
writes runs/books.
"""

from pathlib import Path

from rayunlearn import recipes
from rayunlearn.config import TEXTS, Data, Measure, Method, Select, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective

# without it the domain dataset alone
BOOKS = Path("runs/books")

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=5),
    select=Select(extractor="slots", keyword_fraction=0.3),
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
    {(*PROSE, "select.extractor", *NPO): ((*PASSAGES, "tfidf", "npo", "nll", 1e-3, 0.03),)}
    if (BOOKS / "manifest.json").is_file()
    else None
)

ARMS = {
    "select.text": TEXTS,
    "select.ratio": (0.25, 1.0),
    ("select.seed", "train.seed"): (0, 1, 2, 3, 4),
}

AXES = tuple(corpus | ARMS for corpus in (DOMAIN, READ) if corpus)
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)

STUDY = {"select.ratio": (0.01, 0.05, 0.1, 1.0), ("select.seed", "train.seed"): (0, 1, 2, 3, 4)}
LONG = {"train.unit": "epochs", "train.length": 300.0}
PRESETS = {
    "paper": {
        "BASE": Trial(
            data=Data(name="wmdp-bio", path="wmdp", options="corpora=true,documents=600"),
            select=Select(extractor="judge", judge_model="meta-llama/Meta-Llama-3-8B-Instruct"),
            stop=Stop(utility_floor=0.0),
            measure=Measure(metrics=recipes.LETTER_SETTINGS),
        ),
        "AXES": (
            recipes.axis("coreset_rmu_wmdp") | {"select.text": ("original",)} | STUDY,
            recipes.axis("coreset_rmu_wmdp", LONG)
            | {"select.text": tuple(text for text in TEXTS if text != "original")}
            | STUDY,
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
