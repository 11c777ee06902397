"""Does a quarter of what a real language model knows of one subject unlearn like all of it?

SmolLM2-135M-Instruct is asked for the capitals of European countries, and twenty that it
knows without further training are the forget set. Twenty facts of chemistry and of opposites are
kept; capitals elsewhere (`near`), continents (`untouched`) and past tenses (`far`) are asked and
never shown.
Hypothesis: five of the twenty, drawn at random, take the other fifteen along. Refuted if the forget
probability after five stays near base, or well above that after all twenty.

A demonstration of minutes: one method at the settings that `pretrained_coreset.py --preset quick`
found (LOG.md), on other retain and untouched sets, one seed, so sizes of effects and no proof; and
`probability` is of the whole sentence, so it falls too where only the way to begin a sentence is
lost. `make demo-pretrained` brings the model first (`make smollm2`).
"""

from rayunlearn.config import Data, Method, Model, Stop, Train, Trial
from rayunlearn.experiment import Budget, Objective
from rayunlearn.models.smollm2 import smollm2_folder

BASE = Trial(
    data=Data(
        name="known",
        options=(
            "forget=capitals:Europe,retain=chemical_symbols,opposites,untouched=continents,"
            "far=past_tenses,limit=20"
        ),
        template="chat",
        max_tokens=96,
    ),
    model=Model(name=str(smollm2_folder()), teach=False),
    # activations of this model at block 7 are 115 to 170 long; 6.5, the method's default, pulls
    # them to nothing and takes the retain set with them
    method=Method(forget="rmu", retain="activation", retain_weight=9.955, layer=7),
    options=(("rmu.steering", 70.71),),
    # at 2e-3 and steering 200 `untouched` is lost too
    train=Train(
        learning_rate=4.086e-4,
        batch_size=4,
        length=40,
        layers="5,6,7",
        parameters="down_proj",
    ),
    stop=Stop(utility_floor=0.5, check_every=20),
)
AXES = {"select.ratio": (0.25, 1.0)}
SEARCH = {}
BUDGET = Budget(tuning="none")
OBJECTIVE = Objective(
    forgetting="probability", utility="probability", utility_split="retain", utility_floor=0.5
)
