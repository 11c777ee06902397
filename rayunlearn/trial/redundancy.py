"""Columns that describe how redundant the forget corpus is."""

from __future__ import annotations

from rayunlearn.config import rounded_share
from rayunlearn.keywords.extract import weight_keywords
from rayunlearn.lazy import torch
from rayunlearn.models.document_features import document_features
from rayunlearn.selectors.redundancy import (
    effective_rank,
    expected_coverage,
    near_duplicate_share,
    nearest_similarity,
)
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.keywords import forget_keywords

# per cent of the documents at which the keyword coverage curve is kept
CURVE = (1, 5, 10, 25)


def redundancy_columns(context: TrialContext) -> dict[str, float | None]:
    """The redundancy columns of the base trial: near-duplicates, effective rank, nearest
    similarity, keyword coverage curve.
    """
    forget, _ = training_sequences(context)
    states = torch.stack([p.state for p in document_features(context.model, forget)])
    keywords = [weight_keywords(k) for k in forget_keywords(context)]
    curve = {
        f"keyword_curve_{per_cent:02d}": expected_coverage(
            keywords, rounded_share(per_cent / 100, len(forget))
        )
        for per_cent in CURVE
    }
    return {
        "near_duplicate_share": near_duplicate_share([d.answer for d in context.corpus.forget]),
        "effective_rank": effective_rank(states),
        "nearest_similarity": nearest_similarity(states),
        **curve,
    }
