"""Passes over a corpus through Ray Data write what one process writes."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.cluster.corpus_engine import ray_engine
from rayunlearn.corpus.engine import Engine
from rayunlearn.corpus.extract_keywords import extract_corpus_keywords
from tests.corpus_in_pieces import check_scores, expected, request, write_corpus, write_model


@pytest.fixture
def engine(ray_address: str) -> Iterator[Engine]:
    """Ray Data on this folder's cluster."""
    with ExitStack() as open_until_the_end:
        yield ray_engine(open_until_the_end, workers=2)


@pytest.mark.parametrize("extractor", ["tfidf", "log_odds"])
def test_ray_writes_row_by_row_what_this_machine_writes(
    extractor: str, tmp_path: Path, engine: Engine
) -> None:
    corpus = write_corpus(tmp_path)
    extract_corpus_keywords(request(corpus, extractor), choose=lambda *_: engine)
    assert pl.read_parquet(tmp_path / f"{extractor}.parquet").rows() == expected(extractor).rows()


def test_scores_through_ray_are_those_of_all_documents_at_once(
    tmp_path: Path, engine: Engine
) -> None:
    check_scores(write_corpus(tmp_path), write_model(tmp_path / "model"), engine)
