"""All attacks in one directory, by name."""

from rayunlearn.attacks.prompts import PROMPTS
from rayunlearn.attacks.rephrasings import REPHRASINGS
from rayunlearn.attacks.table import Attack
from rayunlearn.attacks.weights import WEIGHTS

ATTACKS: dict[str, Attack] = WEIGHTS | PROMPTS | REPHRASINGS
