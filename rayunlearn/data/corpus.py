"""One way in to a corpus, generated or of one's own."""

from rayunlearn.config import BEDS, Data
from rayunlearn.data import files, testbed
from rayunlearn.data.documents import Corpus


def load_corpus(data: Data) -> Corpus:
    """The corpus that `data` describes: a generated test bed (`domain`, `people`) or files. Raises UserError as they do."""
    return testbed.generate(data) if data.name in BEDS else files.load_files(data)
