"""How many words of a coreset carry its effect? From one word in ten to one in two, keywords beside
the same number of random words.

Question: the documents of a coreset are cut down to a share of their words, the best keywords or as
many random ones. From which share on do they unlearn like whole documents, and is that a matter of
which words are left or of how many?

Hypothesis: forgetting rises with the share of keywords and reaches that of whole documents well
before all words are there, as the coreset study's keywords keep most of its effect (Pal et al.
2504.10185, section 4); random words need a larger share. Refuted if random words of a share forget
no less than keywords of it, or if even half of the words stays behind whole documents.

`keywords.py` compares the five texts at one share, on the full forget set too and on books; here
the share is the dial. Equal optimizer steps in every trial. RMU's rate and steering are those of
`keywords.py`, found on whole documents; nothing is tuned per arm.

`--preset paper`: RMU of that study on WMDP-bio at one of its ratios, for the 300 epochs that it
gives keywords, and two ways to find them: a chat model that judges (that study's was OpenAI's o1;
here an open one with our own prompt) and tf-idf, which costs nothing and which it does not try. It
has no shares of keywords and no random words, and gives whole documents fewer epochs. Scored as
there: options shown, the highest of the letters A to D (`letter_choice`).
"""

from rayunlearn import recipes
from rayunlearn.config import Data, Measure, Method, Select, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=5),
    select=Select(extractor="slots"),
    method=Method(forget="rmu", retain="activation", retain_weight=5.0, layer=1),
    train=Train(length=100, batch_size=8, learning_rate=6e-3),
    stop=Stop(utility_floor=0.1, check_every=30),
)
CORESETS = {
    "rmu.steering": (20.0,),
    "select.ratio": (0.1, 0.25),
    ("select.seed", "train.seed"): (0, 1, 2, 3, 4),
}
SHARES = {
    "select.text": ("keywords_only", "random_words"),
    "select.keyword_fraction": (0.1, 0.2, 0.3, 0.5),
}
AXES = (CORESETS | {"select.text": ("original",)}, CORESETS | SHARES)
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)

LONG = {"train.unit": "epochs", "train.length": 300.0}
CORESET = recipes.axis("coreset_rmu_wmdp", LONG) | {
    "select.ratio": (0.05,),
    ("select.seed", "train.seed"): (0, 1, 2, 3, 4),
}
PRESETS = {
    "paper": {
        "BASE": Trial(
            data=Data(name="wmdp-bio", path="wmdp", options="corpora=true,documents=600"),
            select=Select(judge_model="meta-llama/Meta-Llama-3-8B-Instruct"),
            stop=Stop(utility_floor=0.0),
            measure=Measure(metrics=recipes.LETTER_SETTINGS),
        ),
        "AXES": (
            CORESET | {"select.text": ("original",)},
            CORESET | {"select.extractor": ("judge", "tfidf")} | SHARES,
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
