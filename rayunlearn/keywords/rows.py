"""Keywords to rows of the `keywords` table and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from rayunlearn.keywords.phrases import Keyword


def keyword_rows(
    corpus_digest: str,
    extractor: str,
    ids: Sequence[str],
    keyword_lists: Sequence[Sequence[Keyword]],
) -> list[dict[str, Any]]:
    """Rows of the `keywords` table: one per place a keyword stands at, documents in order and
    keywords best first.
    """
    fixed = {"corpus_digest": corpus_digest, "extractor": extractor}
    return [
        fixed | {"doc_id": doc_id, "keyword": k.text, "score": k.score, "start": start, "end": end}
        for doc_id, keywords in zip(ids, keyword_lists, strict=True)
        for k in keywords
        for start, end in k.spans
    ]


def keywords_from(table: pl.DataFrame, ids: Sequence[str]) -> list[list[Keyword]]:
    """Rows of the `keywords` table as keywords of each document."""
    spans: dict[str, dict[tuple[str, float], list[tuple[int, int]]]] = {
        doc_id: {} for doc_id in ids
    }
    for doc_id, text, score, start, end in table.select(
        "doc_id", "keyword", "score", "start", "end"
    ).iter_rows():
        # copies of a document share an id
        if (start, end) not in (places := spans[doc_id].setdefault((text, score), [])):
            places.append((start, end))
    return [
        [Keyword(text, score, tuple(places)) for (text, score), places in spans[doc_id].items()]
        for doc_id in ids
    ]
