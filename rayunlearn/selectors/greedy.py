"""Selectors that build a coreset one document at a time: the score of a document is minus its place
in that order.

So they are nested like the others. Every tie goes to the document that comes first. `n_ranked` says
how many documents need a place: the others share the score after the last, and the first `n_ranked`
are the same however many are asked for. All of them choose lazily (Minoux 1978): as what a document
would add can only fall, one whose old value is beaten by a fresh one needs no new look. The order
is that of plain greedy.

| selector | time | memory |
|---|---|---|
| `k_center` | at most n k D, mostly k^2 D | n D |
| `herding` | n k D | n D |
| `facility_location`, `craig` | n^2 D, then as many rows of n D as looks are needed | one (n, n) |
|  |  | matrix up to MATRIX_LIMIT documents, n D and a block of rows beyond |
| `keyword_coverage` | keywords of all documents, once for each cover | the same |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rayunlearn.lazy import functional, np, torch
from rayunlearn.selectors.cost import BLOCK_NUMBERS, MATRIX_LIMIT, require_affordable

if TYPE_CHECKING:
    from torch import Tensor

# documents that are looked at together: the first block is small, as mostly one of its first wins
FIRST_BLOCK, LARGEST_BLOCK = 8, 4096
# keyword weights are counted in whole units, so that gains are exact in any order of addition; the
# unit is the power of two that brings their total below 2^WEIGHT_BITS
WEIGHT_BITS = 61


def k_center(embeddings: Tensor, n_ranked: int) -> Tensor:
    """Farthest-first traversal: each next document is the one farthest from all that are taken
    (Euclidean).

    embeddings (n, D); returns -rank (n,). Sener and Savarese 1708.00489, algorithm 1; the first is
    the document nearest to the mean (ours).
    """
    require_affordable("k_center", *_size(embeddings), n_ranked)
    points = embeddings.double()
    first = int((points - points.mean(0)).norm(dim=1).argmin())
    order = [first]
    nearest = torch.full((len(points),), torch.inf, dtype=torch.float64)
    # to how many of `order`, from its beginning, the distance in `nearest` looks
    n_seen = torch.zeros(len(points), dtype=torch.long)

    def look(documents: Tensor) -> None:
        centres = points[torch.tensor(order[int(n_seen[documents].min()) :])]
        distance = _distances(points[documents], centres).min(1).values
        nearest[documents] = torch.minimum(nearest[documents], distance)

    # taken documents never win, duplicates of them (distance 0) still can
    nearest[first] = -1.0
    while len(order) < min(n_ranked, len(points)):
        order.append(_best_after_looking(nearest, n_seen, len(order), look))
        nearest[order[-1]] = -1.0
    return rank_scores(order, len(points))


def herding(embeddings: Tensor, n_ranked: int) -> Tensor:
    """Each next document moves the coreset's mean as near to the corpus's mean as one document can.

    embeddings (n, D), scaled to unit length here; returns -rank (n,). Welling 2009 in the form of
    iCaRL (Rebuffi et al. 1611.07725, algorithm 4): argmin || mean - (sum of taken + x) / (k + 1)
    ||, without replacement. That is the largest x . w - |x|^2 / 2 with w = (k + 1) mean - sum of
    taken: float32 proposes by it, float64 decides among those within its rounding error.
    """
    require_affordable("herding", *_size(embeddings), n_ranked)
    points = functional.normalize(embeddings.double(), dim=1)
    target, total = points.mean(0), torch.zeros(points.shape[1], dtype=torch.float64)
    single, half_square = points.float(), (points.square().sum(1) / 2).float()
    order: list[int] = []
    for size in range(1, min(n_ranked, len(points)) + 1):
        remainder = target * size - total
        approximate = single @ remainder.float() - half_square
        approximate[order] = -torch.inf
        error = 1e-5 * (1 + float(remainder.norm()))
        candidates = (approximate >= approximate.max() - error).nonzero().flatten()
        distance = (target - (total + points[candidates]) / size).norm(dim=1)
        order.append(int(candidates[distance.argmin()]))
        total += points[order[-1]]
    return rank_scores(order, len(points))


def facility_location(embeddings: Tensor, n_ranked: int) -> Tensor:
    """Greedy maximum of sum_i max_{j taken} (1 + cosine_ij) / 2: every document has a taken one
    like it.

    embeddings (n, D); returns -rank (n,). Lin and Bilmes 2011; lazy greedy (Minoux 1978), equal to
    plain greedy.
    """
    require_affordable("facility_location", *_size(embeddings), n_ranked)
    points = functional.normalize(embeddings.float(), dim=1)

    def rows(documents: Tensor) -> Tensor:
        return (points[documents] @ points.T).add_(1).div_(2)

    return rank_scores(facility_order(rows, len(points), n_ranked), len(points))


def craig(gradients: Tensor, n_ranked: int) -> Tensor:
    """Facility location on gradients: greedy maximum of sum_i max_{j taken} (d_max - ||g_i -
    g_j||).

    gradients (n, d); returns -rank (n,). CRAIG (Mirzasoleiman et al. 1906.01827, equation 13). Any
    number that no distance exceeds gives the order that d_max gives, as it adds the same to every
    document's value: twice the largest distance from the mean stands for it here.
    """
    require_affordable("craig", *_size(gradients), n_ranked)
    points = gradients.float()
    bound = 2 * float((points - points.mean(0)).norm(dim=1).max())

    def rows(documents: Tensor) -> Tensor:
        return torch.cdist(points[documents], points).neg_().add_(bound).clamp_min_(0)

    return rank_scores(facility_order(rows, len(points), n_ranked), len(points))


def facility_order(rows: Callable[[Tensor], Tensor], n: int, n_ranked: int) -> list[int]:
    """The first `n_ranked` of n documents in the order of greedy facility location.

    rows(documents): their similarity to all, (len(documents), n) float32, none negative; called
    once for all documents where the (n, n) matrix is small enough to keep.
    """
    if n <= MATRIX_LIMIT:
        rows = _kept_rows(rows, n).__getitem__
    best = torch.zeros(n)
    gain = torch.full((n,), torch.inf, dtype=torch.float64)
    n_seen = torch.full((n,), -1)

    def look(documents: Tensor) -> None:
        for block in documents.split(max(1, BLOCK_NUMBERS // n)):
            above = rows(block).sub_(best).clamp_min_(0)
            gain[block] = above.sum(1, dtype=torch.float64)

    order: list[int] = []
    while len(order) < min(n_ranked, n):
        order.append(_best_after_looking(gain, n_seen, len(order), look))
        torch.maximum(best, rows(torch.tensor(order[-1:]))[0], out=best)
        gain[order[-1]] = -1.0
    return order


def keyword_coverage(document_keywords: Sequence[Mapping[str, float]], n_ranked: int) -> Tensor:
    """Greedy cover of weighted keywords: each next document adds the most weight not yet covered.

    document_keywords: keyword to weight of every document; a keyword weighs the sum of its weights
    over the corpus. When nothing new is left, a new round of cover begins among the remaining
    documents. Returns -rank (n,). Ours; weighted maximum coverage, of which greedy reaches 1 - 1/e
    (Nemhauser et al. 1978). Weights are counted in whole units, about 2^-61 of their total.
    """
    n = len(document_keywords)
    cover = KeywordCover(document_keywords)
    order: list[int] = []
    while len(order) < min(n_ranked, n):
        documents = cover.next_round(min(n_ranked, n) - len(order))
        if not documents:
            order += [p for p in range(n) if not cover.taken[p]][: n_ranked - len(order)]
        order += documents
    return rank_scores(order, n)


class KeywordCover:
    """Documents and keywords as two index lists, so that taking a document costs what its keywords
    occur elsewhere.
    """

    def __init__(self, document_keywords: Sequence[Mapping[str, float]]) -> None:
        index_of: dict[str, int] = {}
        words = [
            [index_of.setdefault(word, len(index_of)) for word in keywords]
            for keywords in document_keywords
        ]
        weights = np.zeros(len(index_of))
        for row, keywords in zip(words, document_keywords, strict=True):
            weights[row] += list(keywords.values())
        _, exponent = np.frexp(weights.sum())
        self._weight = np.rint(np.ldexp(weights, WEIGHT_BITS - exponent)).astype(np.int64)
        self._words = [np.array(row, dtype=np.int64) for row in words]
        self._documents = _documents_of_words(self._words, len(index_of))
        self.taken = np.zeros(len(words), dtype=bool)
        self._whole = np.array([self._weight[row].sum() for row in self._words], dtype=np.int64)

    def next_round(self, limit: int) -> list[int]:
        """At most `limit` documents of one cover, best first: until no keyword of a document that
        is left is uncovered.
        """
        gain = np.where(self.taken, -1, self._whole)
        covered = np.zeros(len(self._weight), dtype=bool)
        order: list[int] = []
        while len(order) < limit and (best := int(gain.argmax())) >= 0 and gain[best] > 0:
            order.append(best)
            gain[best] = -1
            self.taken[best] = True
            new = [word for word in self._words[best] if not covered[word]]
            covered[new] = True
            for word in new:
                sharing = self._documents[word]
                gain[sharing] -= np.where(gain[sharing] < 0, 0, self._weight[word])
        return order


def rank_scores(order: Sequence[int], n: int) -> Tensor:
    """Order to scores: minus the place of each document, and -len(order) for those without one;
    (n,) float32.
    """
    scores = torch.full((n,), -float(len(order)))
    scores[torch.tensor(order, dtype=torch.long)] = -torch.arange(len(order), dtype=torch.float32)
    return scores


def _best_after_looking(
    value: Tensor, n_seen: Tensor, now: int, look: Callable[[Tensor], None]
) -> int:
    """The document with the largest value at step `now`, the first of equals.

    value (n,): of documents not looked at in this step (n_seen != now) an upper bound, negative for
    those that are taken. `look(documents)` makes the values of these the present ones.
    """
    block = FIRST_BLOCK
    while n_seen[best := int(value.argmax())] != now:
        highest = value.topk(min(block, len(value))).indices
        documents = highest[(n_seen[highest] != now) & (value[highest] >= 0)]
        # of more equals than a block holds, the first may not be among the highest
        documents = torch.cat([documents, torch.tensor([best])]).unique()
        look(documents)
        n_seen[documents] = now
        block = min(2 * block, LARGEST_BLOCK)
    return best


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (len(a), len(b)) from differences: exact for near copies, which the way
    over inner products is not.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _kept_rows(rows: Callable[[Tensor], Tensor], n: int) -> Tensor:
    """The (n, n) similarity, filled block by block: nothing of its size is beside it."""
    matrix = torch.empty(n, n)
    for block in torch.arange(n).split(max(1, BLOCK_NUMBERS // max(1, n))):
        matrix[block] = rows(block)
    return matrix


def _documents_of_words(words: Sequence[np.ndarray], n_words: int) -> list[np.ndarray]:
    """For every keyword the documents that have it, in their order."""
    flat = np.concatenate([*words, np.zeros(0, dtype=np.int64)])
    documents = np.repeat(np.arange(len(words)), [len(row) for row in words])
    order = np.argsort(flat, kind="stable")
    ends = np.cumsum(np.bincount(flat, minlength=n_words))
    return np.split(documents[order], ends[:-1]) if n_words else []


def _size(vectors: Tensor) -> tuple[int, int]:
    """Number of documents and numbers of each."""
    return vectors.shape[0], vectors.shape[1]
