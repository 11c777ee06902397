"""Keywords of many documents at once are those of each document alone, to the last bit."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rayunlearn.config import Data
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.keywords.phrases import Keyword, common_words, document_words
from rayunlearn.keywords.statistics import statistics_of
from rayunlearn.keywords.table import log_odds, tfidf
from rayunlearn.keywords.tokens import IntArray, blocks_of, tokens_of
from rayunlearn.keywords.vectorized import (
    KeywordArrays,
    WordFeatures,
    log_odds_features,
    log_odds_rows,
    tfidf_features,
    tfidf_rows,
)
from rayunlearn.keywords.words import words_of

# Letters, joiners, slashes, marks that compose, a final sigma, scripts without spaces, and a
# character of four bytes.
TEXTS = st.lists(
    st.text(alphabet="ably-'’/ .,\n_9éÅ\u030a显ก\u0e31 \tΣσς🙂İ", max_size=14), max_size=5
)
Row = tuple[int, str, float, int, int]


def rows(found: KeywordArrays) -> list[Row]:
    columns = (
        found.document.tolist(),
        found.keyword.to_pylist(),
        found.score.tolist(),
        found.start.tolist(),
        found.end.tolist(),
    )
    return list(zip(*columns, strict=True))


def rows_of_pages(pages: list[list[Keyword]]) -> list[Row]:
    return [
        (at, k.text, k.score, start, end)
        for at, keywords in enumerate(pages)
        for k in keywords
        for start, end in k.spans
    ]


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_words_of_many_texts_are_those_of_each(texts: list[str]) -> None:
    tokens = tokens_of(texts)
    found: list[list[tuple[str, int, int, bool]]] = [[] for _ in texts]
    for document, start, end, opens, key in zip(
        tokens.document, tokens.start, tokens.end, tokens.opens, tokens.key, strict=True
    ):
        begin = tokens.begins[document]
        found[document].append((tokens.keys[key], start - begin, end - begin, bool(opens)))
    assert found == [[(w.key, w.start, w.end, w.opens) for w in words_of(text)] for text in texts]


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_counts_of_many_texts_are_those_of_their_words(texts: list[str]) -> None:
    counted = statistics_of(texts)
    words = [[w.key for w in words_of(text)] for text in texts]
    assert counted.n_documents == len(texts) and counted.n_words == sum(map(len, words))
    for key in {key for text in words for key in text}:
        assert counted.counts[key] == sum(text.count(key) for text in words)
        assert counted.document_counts[key] == sum(key in text for text in words)


@settings(deadline=None, max_examples=60)
@given(
    TEXTS, st.sampled_from([frozenset[str](), frozenset({"a", "é"})]), st.sampled_from([0.0, 1.0])
)
def test_tfidf_of_a_block_is_that_of_its_pages(
    texts: list[str], common: frozenset[str], earliness: float
) -> None:
    statistics = statistics_of(texts)
    pages = [tfidf(document_words(text, common), statistics, earliness=earliness) for text in texts]
    assert rows(
        tfidf_rows(texts, tfidf_features(statistics, common), earliness=earliness)
    ) == rows_of_pages(pages)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(0, 3))
def test_log_odds_of_a_block_is_that_of_its_pages(texts: list[str], cut: int) -> None:
    forget, retain = statistics_of(texts), statistics_of(texts[cut:])
    pages = [
        log_odds(document_words(text), forget, retain, prior_words=5.0, least_z=0.1)
        for text in texts
    ]
    assert rows(
        log_odds_rows(texts, log_odds_features(forget, retain, 5.0), least_z=0.1)
    ) == rows_of_pages(pages)


@settings(max_examples=5, deadline=None)
@given(st.integers(200, 20_000))
def test_documents_of_the_bed_have_the_same_keywords_however_they_are_cut_into_blocks(
    characters: int,
) -> None:
    corpus = generate_dataset(Data())
    texts, others = [d.answer for d in corpus.forget], [d.answer for d in corpus.retain]
    statistics, retain = statistics_of(texts), statistics_of(others)
    common = common_words(statistics)
    blocks = list(blocks_of(texts, characters))
    assert [text for block in blocks for text in block] == texts
    # the same for all blocks, as in a pass
    facts = tfidf_features(statistics, common)
    by_block = [
        row[1:] for block in blocks for row in rows(tfidf_rows(block, facts, earliness=1.0))
    ]
    assert by_block == [
        row[1:]
        for row in rows_of_pages(
            [tfidf(document_words(text, common), statistics) for text in texts]
        )
    ]
    facts = log_odds_features(statistics, retain, 1000.0)
    by_block = [
        row[1:] for block in blocks for row in rows(log_odds_rows(block, facts, least_z=2.5))
    ]
    assert by_block == [
        row[1:]
        for row in rows_of_pages(
            [log_odds(document_words(text), statistics, retain) for text in texts]
        )
    ]


def test_a_keyword_s_first_row_is_marked() -> None:
    """Two keywords, one of them twice: three rows, of which two are first."""
    texts = ["red cat, blue dog, red cat"]
    found = tfidf_rows(texts, tfidf_features(statistics_of(texts), ()), earliness=1.0)
    assert found.keyword.to_pylist() == [
        "red cat",
        "red cat",
        "blue dog",
    ] and found.new.tolist() == [True, False, True]


def test_what_is_asked_of_a_word_is_worked_out_once() -> None:
    asked: list[str] = []

    def of_words(keys: Sequence[str]) -> IntArray:
        asked.extend(keys)
        return np.array([[len(key), key == "b"] for key in keys]).reshape(-1, 2)

    facts = WordFeatures(of_words)
    assert facts.of(["aa", "b"]).tolist() == [[2, 1], [0, 1]]
    assert facts.of(["b", "ccc"]).tolist() == [[1, 3], [1, 0]] and facts.of([]).shape == (2, 0)
    assert asked == ["aa", "b", "ccc"]
