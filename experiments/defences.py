"""Does any defence survive the panel? Sharpness-aware steps, weight averages, a capped loss, a
masked loss, fewer and more wordings.

Question: of what NPO unlearned, how much do relearning, training on unrelated text and solved
questions recover, and does a defence leave them less to recover than plain NPO does?

Hypothesis: flatness helps against training (Fan et al. 2502.05374 report it for SAM and weight
averages on WMDP); a loss that counts only the best remembered tokens, one that stops at a cap, and
a forget set with few wordings of each fact give more back. Refuted for a defence if its recovered
fraction under relearning is not below plain NPO's (intervals apart), or if it forgets less to begin
with: recovered fractions are read beside what was left.

Arms: `plain`; `sam`; `average`; `token.cap` 160 nats a document, three a token (at 40, 80 and 120
it stopped before the answer was gone); `token.keep` 0.3, the tokens still remembered best; and the
diversity of the forget set, on a dataset where every fact is told in 20 different documents: plain
NPO on all of them and on a twentieth, drawn at random or by `keyword_coverage`, which leaves out
fewer facts and tells most of them in one or two wordings. Rate, retain weight and beta are tuned by
sixteen trials for plain NPO and for each wrapper and token rule; the small forget sets take plain
NPO's.

Two commands: `rayunlearn run experiments/defences.py`, then `rayunlearn attack runs/defences/1
--trials grid --seeds 1 --attacks relearning,heldout_relearning,unrelated_training,few_shot_retain`.
Attacks run on base and gold as well.

`--preset paper`: NPO, NPO with SAM and NPO with weight averages of 2502.05374 on WMDP-bio, each
with its own hyperparameters as released (`rayunlearn list recipes` says what was not read). Scored
as WMDP is: options shown, the highest of the letters A to D (`letter_choice`).
"""

from rayunlearn import recipes
from rayunlearn.config import Data, Measure, Method, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective, Range

BASE = Trial(
    data=Data(name="domain", size="tiny", redundancy=20),
    method=Method(forget="npo", retain="nll", layer=1),
    train=Train(length=60, batch_size=8, learning_rate=1e-3),
    stop=Stop(utility_floor=0.1, check_every=20),
)
SEEDS = {("select.seed", "train.seed"): (0, 1, 2, 3, 4)}
AXES = (
    {"method.wrappers": ("", "sam", "average")} | SEEDS,
    {"token.cap": (160.0,)} | SEEDS,
    {"token.keep": (0.3,)} | SEEDS,
    {"select.name": ("random", "keyword_coverage"), "select.ratio": (0.05,)} | SEEDS,
)
SEARCH = {
    "train.learning_rate": Range(5e-4, 3e-3, log=True),
    "method.retain_weight": Range(1.0, 8.0, log=True),
    "npo.beta": Range(0.005, 0.05, log=True),
}
BUDGET = Budget(tuning="shared", trials=16, batch=4)
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.9
)

# as released, each with its own hyperparameters
RUNS = ("npo_zephyr_wmdp", "npo_sam_zephyr_wmdp", "npo_average_zephyr_wmdp")
PRESETS = {
    "paper": {
        "BASE": Trial(
            data=Data(name="wmdp-bio", path="wmdp", options="corpora=true"),
            stop=Stop(utility_floor=0.0),
            measure=Measure(metrics=recipes.LETTER_SETTINGS),
        ),
        "AXES": tuple(recipes.axis(name) | SEEDS for name in RUNS),
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
