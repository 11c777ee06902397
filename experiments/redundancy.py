"""How little is enough when facts are told seldom, or often? And is what counts the share of facts
that is covered?

Question: does forgetting follow the share of the forget set's facts that the coreset states, one
curve for all ratios, redundancies and sizes; does the coverage of keywords, which needs no list of
facts, stand in for it, on real corpora too; can the smallest ratio that is enough so be told before
any training; and does a selector that covers more keywords beat random documents?

Hypothesis: yes, every time. Refuted (1) if the unlearned share of a dataset that was left out is
predicted no better from the covered facts of the other datasets than from the ratio; (2) if keyword
coverage predicts it no better than the ratio either; (3) if `keyword_coverage` at 10% does not
forget more than random, paired over ten seeds.

Datasets of 20, 10 and 5 documents per fact, and one with a model of three times the parameters;
each tuned once per method on its full set. NPO is left out at 5: it forgets the domain too slowly
there to say anything of coresets (experiments/LOG.md). Coverage is measured before any training.

Two real corpora are datasets as well where they are found, with NPO: runs/books (`rayunlearn books
BOOKS.parquet --forget TITLE --retain TITLE TITLE` writes it), passages of a novel, and runs/tofu, a
folder or a link with TOFU's files, whose questions ask every fact once. What their facts are nobody
wrote down, so the coverage of keywords stands alone there. They take twice as long as the datasets
together.
"""

from pathlib import Path

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
RMU = {("method.forget", "method.retain"): (("rmu", "activation"),)}
NPO = {("method.forget", "method.retain"): (("npo", "nll"),)}
CURVE = {"select.name": ("random",), "select.ratio": (0.05, 0.25, 1.0), SEEDS: (0, 1, 2, 3, 4)}
PAIRED = {
    "select.name": ("random", "keyword_coverage"),
    "select.ratio": (0.1,),
    SEEDS: tuple(range(10)),
}

BOOKS, TOFU = Path("runs/books"), Path("runs/tofu")
PROSE = (
    "data.name",
    "data.path",
    "data.template",
    "data.probe_forget",
    "data.probe_retain",
    "model.teach_epochs",
    "select.extractor",
)
READ = {
    PROSE: (
        ("files", str(BOOKS.absolute()), "{prompt}", "probe_forget", "probe_retain", 60, "tfidf"),
    )
}
LEARNT = ("data.name", "data.path", "data.limit_retain", "model.teach_epochs", "select.extractor")
ASKED = {LEARNT: (("tofu", str(TOFU.absolute()), 200, 30, "tfidf"),)}

AXES = (
    RMU | {"data.redundancy": (5, 10, 20)} | CURVE,
    RMU | {"data.redundancy": (5, 20)} | PAIRED,
    RMU | {("model.size", "data.redundancy"): (("small", 20),)} | CURVE,
    NPO | {"data.redundancy": (10, 20)} | CURVE,
    NPO | {"data.redundancy": (20,)} | PAIRED,
    *(NPO | READ | part for part in (CURVE, PAIRED) if (BOOKS / "manifest.json").is_file()),
    *(NPO | ASKED | part for part in (CURVE, PAIRED) if TOFU.is_dir()),
)
SEARCH = {
    "train.learning_rate": Range(5e-4, 5e-3, log=True),
    # at 1 NPO's retain loss alone took a third of what base knew (LOG.md)
    "method.retain_weight": Range(1.0, 8.0, log=True),
    "npo.beta": Range(0.005, 0.05, log=True),
    "rmu.steering": Range(5.0, 30.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=8, batch=4)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)

# TOFU tells every fact once, MUSE-Books often.
REAL_CURVE = {
    "select.name": ("random",),
    "select.ratio": (0.01, 0.05, 0.1, 0.25, 1.0),
    SEEDS: (0, 1, 2, 3, 4),
}
REAL_PAIRED = {
    "select.name": ("random", "keyword_coverage"),
    "select.ratio": (0.05,),
    SEEDS: tuple(range(10)),
}
CORPORA = (
    (recipes.axis("npo_tofu_open_unlearning"), {("data.name", "data.path"): (("tofu", "tofu"),)}),
    (
        recipes.axis("npo_muse_books"),
        # pieces of 1,500 words are about the 2,048 tokens of MUSE's chunks
        {("data.name", "data.path", "data.options"): (("muse-books", "muse-books", "words=1500"),)},
    ),
)
PRESETS = {
    "paper": {
        "BASE": Trial(select=Select(extractor="tfidf"), stop=Stop(utility_floor=0.0)),
        "AXES": tuple(
            run | corpus | part for run, corpus in CORPORA for part in (REAL_CURVE, REAL_PAIRED)
        ),
        "SEARCH": {},
        "BUDGET": Budget(tuning="none"),
        "OBJECTIVE": Objective(
            forgetting="probability",
            utility="probability",
            utility_split="retain",
            utility_floor=0.8,
            # as the paper chose: the less is left the better
            target="none",
        ),
    }
}
