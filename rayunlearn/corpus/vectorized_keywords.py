"""The worker of `tfidf` and `log_odds` over a corpus in pieces. It loads neither torch nor a model,
so a process of it starts in a second.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn.corpus.engine import PartitionResult, ProcessPartition
from rayunlearn.corpus.survey import Survey, surviving_texts
from rayunlearn.keywords.tokens import blocks_of
from rayunlearn.keywords.vectorized import Extract, KeywordArrays, has_vectorized
from rayunlearn.storage.parquet import frame_of, write_frame


@dataclass(frozen=True, kw_only=True)
class BlockJob:
    """What a worker needs: one of `vectorized.VECTORIZED`, its arguments, the most keywords of a
    document (0: all), and the surveys.
    """

    extractor: str
    arguments: Mapping[str, Any]
    top: int
    survey: Survey
    retain: Survey | None
    folder: Path


def block_worker(job: BlockJob) -> ProcessPartition:
    """Writes `parts/<piece>.parquet` (table keywords) for one piece at a time."""
    retain = job.retain.statistics() if job.retain else None
    extract = has_vectorized(job.extractor, job.survey.statistics(), retain, job.arguments, job.top)

    def do(partition: int) -> PartitionResult:
        ids, texts = surviving_texts(job.survey, partition)
        frames, counts = zip(*_frames(job, extract, ids, texts), strict=True)
        part = f"parts/{partition:06}.parquet"
        write_frame(job.folder / part, pl.concat(frames))
        return PartitionResult(
            piece=partition, n_documents=len(ids), files=[part], counts={"keywords": sum(counts)}
        )

    return do


def _frames(
    job: BlockJob, extract: Extract, ids: Sequence[str], texts: Sequence[str]
) -> Iterator[tuple[pl.DataFrame, int]]:
    """Rows of the table keywords, and how many keywords they are, a block of documents at a time;
    at least one, if an empty one.
    """
    yield frame_of("keywords", []), 0
    start = 0
    for block in blocks_of(texts):
        rows = extract(block)
        yield (
            _block_frame(rows, ids[start : start + len(block)], job.survey.digest, job.extractor),
            int(rows.new.sum()),
        )
        start += len(block)


def _block_frame(
    rows: KeywordArrays, ids: Sequence[str], corpus: str, extractor: str
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "corpus_digest": pl.repeat(corpus, len(rows.new), dtype=pl.String, eager=True),
            "doc_id": pl.Series(ids, dtype=pl.String).gather(rows.document),
            "extractor": pl.repeat(extractor, len(rows.new), dtype=pl.String, eager=True),
            "keyword": pl.Series(rows.keyword),
            "score": rows.score,
            "start": rows.start,
            "end": rows.end,
        }
    )
