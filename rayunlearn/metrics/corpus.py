"""Metrics of a whole corpus: what cannot be a mean of per-document values. Computed from rows of
`examples`, no model needed.

Membership scores compare split `members` (forget documents whole, where questions are asked of
`forget`), else `forget`, with split `holdout`; forget quality compares with gold's rows; model
utility needs the splits `retain`, `real_authors` and `world_facts`. What the rows do not allow is
left out, never guessed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.metrics.table import Metric
from rayunlearn.ranges import Fraction

Scores = np.ndarray[Any, np.dtype[np.float64]]
SCORES = (
    "loss_score",
    "zlib_score",
    "reference_score",
    "min_k_score",
    "min_k_plus_score",
    "gradient_norm_score",
)
# MUSE's choice
PRIVACY_SCORE = "min_k_score"
# metrics that metrics of the whole corpus hold against gold's
GOLD_METRICS = ("truth_ratio", PRIVACY_SCORE)
UTILITY_TERMS = tuple(
    (split, metric)
    for split, likely in (
        ("retain", "probability"),
        ("real_authors", "option_probability"),
        ("world_facts", "option_probability"),
    )
    for metric in (likely, "rouge_l_recall", "truth_ratio_right")
)


def auc(forget: Scores, holdout: Scores) -> float:
    """P(a holdout document's score is above a forget document's) + half the ties: 1 where the
    forget set looks like members.

    0.5 is what a model that never saw either should have; below it the forget set looks less known
    than unseen text.
    """
    ordered = np.sort(holdout)
    below, up_to = (
        np.searchsorted(ordered, forget, "left"),
        np.searchsorted(ordered, forget, "right"),
    )
    above, ties = len(ordered) - up_to, up_to - below
    return float((above + ties / 2).mean() / len(ordered))


def tpr_at_fpr(forget: Scores, holdout: Scores, *, rate: Fraction = 0.01) -> float:
    """Share of the forget set called a member by the threshold that calls at most `rate` of the
    holdout one. Carlini et al. 2112.03570.

    A member has a score strictly below the threshold. Fewer than 1 / `rate` holdout documents allow
    no false positive at all.
    """
    allowed = math.floor(rate * len(holdout) + 1e-9)
    threshold = np.sort(holdout)[allowed] if allowed < len(holdout) else math.inf
    return float((forget < threshold).mean())


def privacy_leakage(auc_unlearned: float, auc_gold: float) -> float | None:
    """100 (x - g) / g, with x and g = 1 - AUC of the unlearned and the gold model, in percent.
    MUSE's PrivLeak.

    0 is gold; negative: the forget set still looks known (-100 at AUC 1); positive: it looks too
    unknown. Null where g is 0 (MUSE adds 1e-10 to the divisor there).
    """
    gold = 1 - auc_gold
    return 100 * ((1 - auc_unlearned) - gold) / gold if gold > 0 else None


def forget_quality(ratios: Scores, gold_ratios: Scores) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test on the truth ratios of the forget set
    against gold's. TOFU.

    Small: the two can be distinguished. It falls with the number of documents: compare on equal
    numbers only.
    """
    return _kolmogorov_smirnov(ratios, gold_ratios)[1]


def forget_distance(ratios: Scores, gold_ratios: Scores) -> float:
    """Statistic of the same test: the largest gap between the two distribution functions; it does
    not depend on the number as p does.
    """
    return _kolmogorov_smirnov(ratios, gold_ratios)[0]


def model_utility(terms: Sequence[float]) -> float:
    """Harmonic mean of TOFU's nine terms (probability, ROUGE, truth ratio on retain, authors and
    facts); 0 where one is 0.
    """
    return len(terms) / sum(1 / term for term in terms) if min(terms) > 0 else 0.0


CORPUS_METRICS = {
    row.function.__name__: row
    for row in (
        Metric(
            auc,
            "how well a membership score tells forget from holdout",
            "2310.16789; MUSE 2407.06460",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            tpr_at_fpr,
            "forget documents found at 1% false positives",
            "Carlini et al. 2112.03570",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            privacy_leakage,
            "AUC relative to gold's, sign as in MUSE",
            "MUSE 2407.06460",
            "percent",
            -100,
            math.inf,
            "lower",
        ),
        Metric(
            forget_quality,
            "p that gold's truth ratios are the same",
            "TOFU 2401.06121",
            "fraction",
            0,
            1,
            "lower",
        ),
        Metric(
            forget_distance,
            "largest gap to gold's truth ratios",
            "TOFU 2401.06121",
            "fraction",
            0,
            1,
            "",
        ),
        Metric(
            model_utility,
            "harmonic mean of nine terms on other data",
            "TOFU 2401.06121",
            "fraction",
            0,
            1,
            "higher",
        ),
    )
}


def corpus_rows(
    examples: pl.DataFrame, gold: pl.DataFrame | None = None
) -> list[dict[str, object]]:
    """Rows split, metric, value, n of every corpus metric that the examples (doc_id, split, metric,
    value) of one model allow.

    `gold`: the same table of the model that never saw the forget set. Without it there is no forget
    quality, and privacy leakage takes 0.5 for its AUC. Membership metrics are named after their
    score: `min_k_score_auc`, `min_k_score_tpr_at_fpr`.
    """
    scores, reference = _by_place(examples), _by_place(gold) if gold is not None else {}
    return [
        *_membership_rows(scores, reference),
        *_quality_rows(scores, reference),
        *_utility_rows(scores),
    ]


def _by_place(examples: pl.DataFrame) -> dict[tuple[str, str], Scores]:
    """(split, metric) -> values, nulls left out."""
    groups = (
        examples.drop_nulls("value").group_by("split", "metric", maintain_order=True).agg("value")
    )
    return {
        (split, metric): np.asarray(values, dtype=np.float64)
        for split, metric, values in groups.iter_rows()
    }


def _membership_rows(
    scores: Mapping[tuple[str, str], Scores], gold: Mapping[tuple[str, str], Scores]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for score in SCORES:
        sides = _sides(scores, score)
        if sides is None:
            continue
        n, value = sum(map(len, sides)), auc(*sides)
        rows += [_row(f"{score}_auc", value, n), _row(f"{score}_tpr_at_fpr", tpr_at_fpr(*sides), n)]
        if score == PRIVACY_SCORE:
            gold_sides = _sides(gold, score)
            rows.append(
                _row(
                    "privacy_leakage",
                    privacy_leakage(value, auc(*gold_sides) if gold_sides else 0.5),
                    n,
                )
            )
    return rows


def _sides(values: Mapping[tuple[str, str], Scores], score: str) -> tuple[Scores, Scores] | None:
    """(forget documents, unseen ones), None where either is missing."""
    members, holdout = (
        values.get(("members", score), values.get(("forget", score))),
        values.get(("holdout", score)),
    )
    return None if members is None or holdout is None else (members, holdout)


def _quality_rows(
    scores: Mapping[tuple[str, str], Scores], gold: Mapping[tuple[str, str], Scores]
) -> list[dict[str, object]]:
    ratios, expected = scores.get(("forget", "truth_ratio")), gold.get(("forget", "truth_ratio"))
    if ratios is None or expected is None:
        return []
    return [
        _row(f.__name__, f(ratios, expected), len(ratios))
        for f in (forget_quality, forget_distance)
    ]


def _utility_rows(scores: Mapping[tuple[str, str], Scores]) -> list[dict[str, object]]:
    if not all(term in scores for term in UTILITY_TERMS):
        return []
    n = sum(len(scores[term]) for term in UTILITY_TERMS if term[1] == "rouge_l_recall")
    return [
        _row(
            "model_utility",
            model_utility([float(scores[term].mean()) for term in UTILITY_TERMS]),
            n,
            split="retain",
        )
    ]


def _row(metric: str, value: float | None, n: int, split: str = "forget") -> dict[str, object]:
    return {"split": split, "metric": metric, "value": value, "n": n}


def _kolmogorov_smirnov(first: Scores, second: Scores) -> tuple[float, float]:
    """(statistic, p-value), two-sided; exact for small samples, as scipy chooses."""
    # takes most of a second to import, and few runs have gold's rows
    from scipy.stats import ks_2samp

    test = ks_2samp(first, second)
    return float(test.statistic), float(test.pvalue)
