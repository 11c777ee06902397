"""What a job over a corpus is asked for, and what its workers are given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rayunlearn.config import Value
from rayunlearn.corpus.engine import Engine, run_in_sequence
from rayunlearn.corpus.source import CorpusSource, corpus_source
from rayunlearn.corpus.survey import Survey

Request = TypeVar("Request", bound="CorpusRequest")

# by the sources' size, and whether a model is run
EngineChoice = Callable[[Sequence[CorpusSource], bool], Engine]


def local_engine(_sources: Sequence[CorpusSource], _with_model: bool) -> Engine:
    """The engine of a caller that has no wish."""
    return run_in_sequence


@dataclass(frozen=True, kw_only=True)
class CorpusRequest:
    """What every job over a corpus is asked for. `corpus` is a source (`corpus.partitions`);
    `piece_bytes` 0 leaves the size of partitions to what reads them; `options` are settings of the
    functions that are run, by dotted name (`tfidf.earliness`).
    """

    corpus: str
    output: Path
    columns: str = ""
    chunk_words: int = 0
    unit: str = ""
    piece_bytes: int = 0
    options: Mapping[str, Value] = field(default_factory=dict)

    def source(self, name: str, *, piece_bytes: int, side: str = "forget") -> CorpusSource:
        """The source `name`, read as this request says, in partitions of `piece_bytes` where it
        does not say.
        """
        return corpus_source(
            name,
            side=side,
            columns=self.columns,
            chunk_words=self.chunk_words,
            unit=self.unit,
            piece_bytes=self.piece_bytes or piece_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class CorpusJob(Generic[Request]):
    """What every worker needs. `arguments` are those of the functions that it runs; `folder` is
    where it writes.
    """

    request: Request
    arguments: Mapping[str, Any]
    survey: Survey
    folder: Path
