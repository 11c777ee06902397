"""All attacks in one directory, by name."""

from rayunlearn.attacks.table import Attack

ATTACKS: dict[str, Attack] = {}
