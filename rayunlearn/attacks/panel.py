"""All attacks in one directory, by name."""

from rayunlearn.attacks.prompts import PROMPTS
from rayunlearn.attacks.rephrasings import REPHRASINGS
from rayunlearn.attacks.table import Attack

ATTACKS: dict[str, Attack] = PROMPTS | REPHRASINGS
