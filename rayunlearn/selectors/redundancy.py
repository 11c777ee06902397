"""How much a corpus repeats itself: what may say, before any training,
how small a coreset can be.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import fsum, lgamma
from typing import TYPE_CHECKING

from rayunlearn.keywords.words import words_of
from rayunlearn.lazy import functional, np, torch

if TYPE_CHECKING:
    from torch import Tensor


# 32 bands of 4: two documents of Jaccard 0.6 meet with probability 0.99, of 0.2 with 0.05
N_HASHES, ROWS_PER_BAND = 128, 4


def near_duplicate_share(texts: Sequence[str], threshold: float = 0.8, shingle: int = 3) -> float:
    """Share of documents that have another one with Jaccard similarity of their word shingles >=
    threshold. In [0, 1].

    MinHash with banding (Broder 1997) proposes pairs and their exact similarity decides, so a found
    pair is never wrong; a pair at the threshold 0.8 is missed with probability below 1e-7.
    Documents shorter than a shingle are one shingle.
    """
    shingles = [shingles_of(text, shingle) for text in texts]
    signatures = (
        np.stack([minhash(s) for s in shingles])
        if shingles
        else np.zeros((0, N_HASHES), dtype=np.uint64)
    )
    buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for band in range(N_HASHES // ROWS_PER_BAND):
        for index, rows in enumerate(
            signatures[:, band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND]
        ):
            buckets[band, rows.tobytes()].append(index)
    duplicates: set[int] = set()
    for members in buckets.values():
        for index in members:
            if index not in duplicates:
                duplicates |= {
                    b
                    for other in members
                    if other != index and jaccard(shingles[index], shingles[other]) >= threshold
                    for b in (index, other)
                }
    return len(duplicates) / max(1, len(texts))


def shingles_of(text: str, length: int) -> frozenset[int]:
    """Hashes of every run of `length` words."""
    keys = [word.key for word in words_of(text)]
    runs = {
        " ".join(keys[index : index + length]) for index in range(max(1, len(keys) - length + 1))
    }
    return frozenset(
        int.from_bytes(hashlib.blake2b(run.encode(), digest_size=7).digest(), "big") for run in runs
    )


def minhash(shingles: Iterable[int]) -> np.ndarray:
    """(128,) uint64: the least hash under each of 128 fixed hash functions; two sets agree at one
    with probability their Jaccard.
    """
    values = np.array(sorted(shingles), dtype=np.uint64)[:, None]
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 1 << 63, N_HASHES, dtype=np.uint64) | np.uint64(1)
    shifts = generator.integers(0, 1 << 63, N_HASHES, dtype=np.uint64)
    # modulo 2^64
    mixed = values * factors + shifts
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    signature: np.ndarray = (mixed ^ (mixed >> np.uint64(29))).min(0)
    return signature


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """|intersection| / |union|; of two empty sets 1."""
    return len(a & b) / len(a | b) if a or b else 1.0


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred (n, D) embeddings (Roy
    and Vetterli 2007).

    Between 1 and min(n - 1, D); 1 for documents that are all alike.
    """
    values = torch.linalg.svdvals((embeddings - embeddings.mean(0)).double())
    if float(values.sum()) < 1e-12 * max(1.0, float(embeddings.abs().max())):
        return 1.0
    share = values / values.sum()
    return float(torch.exp(-(share * share.clamp_min(1e-300).log()).sum()))


def nearest_similarity(embeddings: Tensor, block: int = 1024) -> float:
    """Mean over documents of the cosine with the nearest other document, of (n, D) centred
    embeddings; 0 for one document.

    Centred, because hidden states share a large common direction that would make every pair alike.
    """
    points = functional.normalize((embeddings - embeddings.mean(0)).float(), dim=1)
    if len(points) < 2:
        return 0.0
    best = []
    for start in range(0, len(points), block):
        similarity = points[start : start + block] @ points.T
        similarity[
            torch.arange(len(similarity)), torch.arange(start, start + len(similarity))
        ] = -torch.inf
        best.append(similarity.max(1).values)
    return float(torch.cat(best).mean())


def covered_weight(
    document_keywords: Sequence[Mapping[str, float]], selected: Iterable[int]
) -> float | None:
    """Share of the corpus's keyword weight that kept documents name, in [0, 1]; None without
    keywords. A keyword weighs its sum over documents.

    `fsum` rounds once, whatever the order: a set's order is another in every process, and a part
    must not weigh more than the whole.
    """
    weights = keyword_weights(document_keywords)
    covered = {word for index in selected for word in document_keywords[index]}
    return fsum(weights[w] for w in covered) / fsum(weights.values()) if weights else None


def expected_coverage(
    document_keywords: Sequence[Mapping[str, float]], n_kept: int
) -> float | None:
    """Mean of `covered_weight` over all coresets of n_kept documents: the keyword coverage curve of
    `random`, exactly.

    A keyword of d of n documents is missed with probability C(n - d, m) / C(n, m).
    """
    n = len(document_keywords)
    weights = keyword_weights(document_keywords)
    counts: defaultdict[str, int] = defaultdict(int)
    for keywords in document_keywords:
        for word in keywords:
            counts[word] += 1
    covered = fsum(
        weight * (1 - _chance_missed(n, counts[word], n_kept)) for word, weight in weights.items()
    )
    return covered / fsum(weights.values()) if weights else None


def keyword_weights(document_keywords: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Weight of every keyword: its sum over documents."""
    weights: defaultdict[str, float] = defaultdict(float)
    for keywords in document_keywords:
        for word, weight in keywords.items():
            weights[word] += weight
    return dict(weights)


def _chance_missed(n: int, d: int, m: int) -> float:
    if m > n - d:
        return 0.0
    return float(
        np.exp(lgamma(n - d + 1) - lgamma(n - d - m + 1) - lgamma(n + 1) + lgamma(n - m + 1))
    )
