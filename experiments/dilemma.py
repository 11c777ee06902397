"""Is what was unlearned only out of sight, and what does it cost to put it there? Six methods,
asked again with emphasis.

Question: after "Understanding the Dilemma of Unlearning" (unPact, 2509.24675): of the questions
that a model answered before unlearning and not after, which share does it answer again when the
words that its answer hung on are pointed out in the question, and which share of the retain
questions did it lose?

Hypothesis (the paper's): emphasis brings a part of the answers back (insufficient), or the retain
side is lost (destructive). Refuted for a method if key words recover no more than the same number
of random words do (paired intervals overlap zero) while nine tenths of the retain questions stay.

The controls: random words, the same questions to base and to gold. The methods are the paper's six,
and two of them again with a forget loss that counts the tokens of the answers' words alone, which
the paper's analysis asks for and does not try. Rate and strength are tuned for each at the full
forget set; the ranges are what is left of wider ones, in which four trials found gradient ascent
either idle or ruinous (LOG.md). The wording is bare words, because on this dataset a word that was
never trained (`Focus`) makes base itself forget: it then answers 59% with the words named first
and 25% with them repeated last.

`--preset paper`: that study's benchmarks (MUSE News and Books, WMDP) and six methods, of which GA
and NPO with either retain loss are confirmed and task vectors and RMU are likely. Its models,
hyperparameters and the words of its emphasis are not confirmed: these are the benchmarks' own runs
(`rayunlearn list recipes`; task vectors as MUSE trains them) and our wording. It asks for short
answers, on WMDP too, so an answer counts here and not a letter.
"""

from rayunlearn import recipes
from rayunlearn.config import Data, Explain, Method, Stop, Train, Trial, Value
from rayunlearn.data.synthetic import SCIENCE
from rayunlearn.experiment import Budget, Objective, Range

ANSWERS = ",".join(value for attribute in SCIENCE for value in attribute.values)
BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.1, check_every=20),
    explain=Explain(documents=24, gradient_steps=8, wording="{words}."),
)
SEEDS = {"train.seed": (0, 1, 2, 3, 4)}
SIX = (
    ("ga", "nll"),
    ("ga", "kl"),
    ("npo", "nll"),
    ("npo", "kl"),
    ("task_vector", "none"),
    ("rmu", "activation"),
)
AXES = (
    {("method.forget", "method.retain"): SIX} | SEEDS,
    {
        ("method.forget", "method.retain", "token.words"): (
            ("ga", "nll", ANSWERS),
            ("npo", "nll", ANSWERS),
        )
    }
    | SEEDS,
)
SEARCH = {
    "train.learning_rate": Range(7e-4, 1.4e-3, log=True),
    "npo.beta": Range(0.01, 0.05, log=True),
    "rmu.steering": Range(15.0, 60.0, log=True),
    "negate.scale": Range(3.0, 8.0, log=True),
}
BUDGET = Budget(tuning="shared", trials=5, batch=3)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)


def arms(
    recipe: str, corpus: dict[str, Value], rmu: dict[str, Value], task_vector: dict[str, Value]
) -> tuple[dict[tuple[str, ...], tuple[tuple[Value, ...], ...]], ...]:
    """The six methods on a corpus: five with the model, rate and length of a published NPO run, the
    task vector but for the settings in `task_vector`; RMU as on WMDP but for those in `rmu`.
    """
    beta = recipes.values(recipe)["npo.beta"]
    other = ("method.forget", "method.retain", "npo.")
    own = recipes.axis(recipe, corpus, without=other)
    return (
        own | {("method.forget", "method.retain"): (("ga", "nll"), ("ga", "kl"))},
        own
        | {
            ("method.forget", "method.retain", "npo.beta"): (
                ("npo", "nll", beta),
                ("npo", "kl", beta),
            )
        },
        recipes.axis(recipe, corpus | task_vector, without=other)
        | {("method.forget", "method.retain", "negate.scale"): (("task_vector", "none", 1.0),)},
        recipes.axis("coreset_rmu_wmdp", corpus | rmu),
    )


def muse(recipe: str) -> dict[str, Value]:
    """RMU on MUSE: the rate of table B1 of 2504.10185, which has no layer or steering; model and
    length as the others.
    """
    run = recipes.values(recipe)
    names = ("model.name", "train.unit", "train.length", "data.max_tokens")
    return {name: run[name] for name in names} | {"train.learning_rate": 1e-3}


# MUSE trains what a task vector reinforces for 10 epochs at 1e-5 on either corpus, and tries scales
# from 1 to 16.
REINFORCED: dict[str, Value] = {
    "train.unit": "epochs",
    "train.length": 10.0,
    "train.learning_rate": 1e-5,
}
# pieces of 1,500 words are about the 2,048 tokens of MUSE's chunks
BOOKS: dict[str, Value] = {
    "data.name": "muse-books",
    "data.path": "muse-books",
    "data.options": "words=1500",
}
BENCHMARKS = (
    *arms(
        "npo_muse_news",
        {"data.name": "muse-news", "data.path": "muse-news"},
        muse("npo_muse_news"),
        REINFORCED,
    ),
    *arms("npo_muse_books", BOOKS, muse("npo_muse_books"), REINFORCED),
    *arms(
        "coreset_npo_wmdp",
        {
            "data.name": "wmdp-bio",
            "data.path": "wmdp",
            "data.options": "corpora=true,documents=600",
        },
        {},
        {},
    ),
)
PRESETS = {
    "paper": {
        "BASE": Trial(stop=Stop(utility_floor=0.0), explain=Explain(documents=64)),
        "AXES": tuple(arm | {"train.seed": (0, 1, 2, 3, 4)} for arm in BENCHMARKS),
        "SEARCH": {},
        "BUDGET": Budget(tuning="none"),
    }
}
