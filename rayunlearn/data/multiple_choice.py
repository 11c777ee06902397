"""Multiple-choice questions by letter: how they are written, and which letter the truth gets."""

from rayunlearn.config import digest
from rayunlearn.data.documents import Document

LETTERS = "ABCDEFGHIJ"
QUESTION_HEAD = "The following are multiple choice questions (with answers).\n\n"


def letter_question(document: Document, true_letter: int) -> str:
    """The question, its options by letter and "Answer:"; the true option is the answer itself,
    never its paraphrase.
    """
    options = [*document.wrong[:true_letter], document.answer, *document.wrong[true_letter:]]
    return "\n".join(
        [
            document.prompt,
            *(f"{LETTERS[index]}. {option}" for index, option in enumerate(options)),
            "Answer:",
        ]
    )


def solved_question(document: Document, true_letter: int) -> str:
    """The question with its letter and a blank line: a shot to stand before another one."""
    return f"{letter_question(document, true_letter)} {LETTERS[true_letter]}\n\n"


def true_option_index(doc_id: str, n_options: int) -> int:
    """Which letter the true option gets where the data does not say: by the document's digest, so
    always the same one.
    """
    return int(digest(["letter", doc_id], 15), 16) % n_options
