"""All attacks in one directory, by name."""

from rayunlearn.attacks.adversarial_prompts import ADVERSARIAL_PROMPTS
from rayunlearn.attacks.base import AttackRow
from rayunlearn.attacks.early_exit import EARLY_EXIT
from rayunlearn.attacks.gptqmodel import GPTQMODEL
from rayunlearn.attacks.linked_questions import LINKED_QUESTIONS
from rayunlearn.attacks.paraphrases import REPHRASINGS
from rayunlearn.attacks.probing import PROBING
from rayunlearn.attacks.prompts import PROMPTS
from rayunlearn.attacks.quantization import QUANTIZATION
from rayunlearn.attacks.relearning import WEIGHTS
from rayunlearn.attacks.sampling import SAMPLING

ATTACKS: dict[str, AttackRow] = (
    WEIGHTS
    | QUANTIZATION
    | GPTQMODEL
    | PROMPTS
    | REPHRASINGS
    | LINKED_QUESTIONS
    | ADVERSARIAL_PROMPTS
    | PROBING
    | EARLY_EXIT
    | SAMPLING
)
