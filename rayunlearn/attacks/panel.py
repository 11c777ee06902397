"""All attacks in one directory, by name."""

from rayunlearn.attacks.by_library import BY_LIBRARY
from rayunlearn.attacks.calibrated import CALIBRATED
from rayunlearn.attacks.decoding import DECODING
from rayunlearn.attacks.inside import INSIDE
from rayunlearn.attacks.prompts import PROMPTS
from rayunlearn.attacks.rephrasings import REPHRASINGS
from rayunlearn.attacks.shortcut import SHORTCUT
from rayunlearn.attacks.table import Attack
from rayunlearn.attacks.universal import UNIVERSAL
from rayunlearn.attacks.weights import WEIGHTS

ATTACKS: dict[str, Attack] = (
    WEIGHTS
    | CALIBRATED
    | BY_LIBRARY
    | PROMPTS
    | REPHRASINGS
    | UNIVERSAL
    | INSIDE
    | SHORTCUT
    | DECODING
)
