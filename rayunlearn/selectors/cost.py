"""What the selectors that look at pairs of documents cost, before any of them runs.

Everything else that selects is linear in the documents, but for sorting. The coefficients are of
one core beside other work; `benchmarks/selection.py` prints the estimate beside what it measures.
A factor of two does not matter for what they are for: to refuse hours before they begin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rayunlearn.errors import require

# what a selection may take on one core: more than most trials train, and less than an evening
MAX_SECONDS, MAX_BYTES = 1200.0, 16 * 2**30
# up to so many documents all are ranked at once, for every ratio
RANKED_WHOLE = 4096
# documents whose (n, n) similarity is held as one float32 matrix (1.6 GB); beyond, rows are
# computed when they are looked at
MATRIX_LIMIT = 20_000
# numbers of one block of such rows, 64 MB in float32
BLOCK_NUMBERS = 1 << 24


@dataclass(frozen=True)
class SelectionCost:
    """Estimated seconds on one core and bytes beside the selector's input."""

    seconds: float
    bytes: float


def k_center_cost(n: int, width: int, n_ranked: int) -> SelectionCost:
    """Distances to the centres of what could be farthest, and a search of n for each place."""
    return SelectionCost(n * n_ranked * (0.3e-9 * width + 5e-9), 12.0 * n * width)


def herding_cost(n: int, width: int, n_ranked: int) -> SelectionCost:
    """One product of the (n, width) float32 matrix with a vector for each place."""
    return SelectionCost(n * n_ranked * (0.5e-9 * width + 3e-9), 12.0 * n * width)


def facility_cost(n: int, width: int, n_ranked: int) -> SelectionCost:
    """Every document looked at twice and, as measured on clustered points, 80 for each place."""
    n_evaluations = 2 * n + 80 * n_ranked
    if n <= MATRIX_LIMIT:
        return SelectionCost(n_evaluations * n * 6e-9 + n * n * 3e-11 * width, 4.0 * n * n)
    return SelectionCost(
        n_evaluations * n * (3e-11 * width + 6e-9), 8.0 * n * width + 8.0 * BLOCK_NUMBERS
    )


def nearest_cost(n: int, width: int, n_ranked: int) -> SelectionCost:
    """Inner products of the (n, width) float32 matrix with `n_ranked` forget documents."""
    return SelectionCost(n * n_ranked * 3e-11 * width, 8.0 * (n + n_ranked) * width)


COSTS: dict[str, Callable[[int, int, int], SelectionCost]] = {
    "k_center": k_center_cost,
    "herding": herding_cost,
    "facility_location": facility_cost,
    "craig": facility_cost,
    "nearest": nearest_cost,
}


def n_places(n_documents: int, ratio: float) -> int:
    """How many documents a greedy selector ranks for the coreset of `ratio`.

    All of them up to RANKED_WHOLE; beyond, the least n / 2^j (rounded up) that is enough, so that
    neighbouring ratios share one order. The order's beginning does not depend on how many are
    ranked, so neither does the coreset. (Where topics share the coreset out it can take more:
    `select_coreset` doubles the number until every topic has its share.)
    """
    if n_documents <= RANKED_WHOLE:
        return n_documents
    places, needed = n_documents, max(1, round(ratio * n_documents))
    while places > 1 and -(-places // 2) >= needed:
        places = -(-places // 2)
    return places


def require_affordable(selector: str, n_documents: int, width: int, n_ranked: int) -> None:
    """Raise UserError, with the estimate, where a greedy selector would take more than MAX_SECONDS
    or MAX_BYTES.

    width: numbers of a document's vector. n_ranked: of `nearest` the forget documents that each is
    compared with. Selectors without an entry in COSTS always pass.
    """
    if selector not in COSTS:
        return
    cost = COSTS[selector](n_documents, width, n_ranked)
    rule = (
        f"{selector} of {n_ranked:,} from {n_documents:,} documents must take at most"
        f" {MAX_SECONDS / 60:.0f} minutes and {MAX_BYTES / 2**30:.0f} GiB (a smaller ratio, fewer"
        " documents, or a selector without pairs of documents: random, moderate, keyword_coverage)"
    )
    require(
        cost.seconds <= MAX_SECONDS and cost.bytes <= MAX_BYTES,
        rule,
        f"an estimate of {cost.seconds / 60:,.0f} minutes and {cost.bytes / 2**30:,.1f} GiB",
    )
