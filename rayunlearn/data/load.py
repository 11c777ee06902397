"""One way in to a corpus: generated, a benchmark's, or of your own."""

from rayunlearn.config import BENCHMARKS, SYNTHETIC_DATASETS, Data
from rayunlearn.data import files, synthetic
from rayunlearn.data.benchmarks import benchmark_corpus
from rayunlearn.data.documents import Corpus


def load_corpus(data: Data) -> Corpus:
    """The corpus that `data` describes: a synthetic dataset, a benchmark or files. Raises
    UserError as they do.
    """
    if data.name in SYNTHETIC_DATASETS:
        return synthetic.generate_dataset(data)
    return benchmark_corpus(data) if data.name in BENCHMARKS else files.load_files(data)
