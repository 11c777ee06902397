"""Retain selectors: which documents of the retain set an unlearning run is reminded of.

As selectors of the forget set (`selectors/table.py`) they give every document a score, the retain
set's share of `retain.ratio` with the highest trains, and a smaller share is part of a larger one.
Positional parameters are the same, here of retain documents, and three of their own:
`forget_embeddings` (m, D) of the forget set, `forget_alignment` (n,), `forget_keywords` (a mapping
from keyword to weight per forget document) and `document_words` (the words of each retain
document). Those that look at the retain documents alone are functions of the forget selectors.

What papers say of the question: Bushipaka et al. 2509.05316 find one set of neighbours too few and
advise several kinds beside general knowledge (here `retain.general`); Chang and Lee 2502.11441 find
that what is written alike suffers most and is worth training on; RASLIK (2604.16591) retrieves
forget and retain documents by a randomised search of gradients, for a corpus where neither set is
given. GRACE, "gradient-guided coreset selection for LLM unlearning", is known to us by its title
alone (not confirmed). None of the functions is a published algorithm: what follows whom stands in
each row's `departures`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING

from rayunlearn.keywords.words import words_of
from rayunlearn.lazy import functional, torch
from rayunlearn.selectors.redundancy import keyword_weights
from rayunlearn.selectors.table import SELECTORS, Selector

if TYPE_CHECKING:
    from torch import Tensor

# rows of one block of cosines
BLOCK_ROWS = 1024


def nearest(embeddings: Tensor, forget_embeddings: Tensor) -> Tensor:
    """Retain documents with a forget document near to them first: the largest cosine with any.

    embeddings (n, D), forget_embeddings (m, D): mean hidden states at the base model, centred by
    the mean of both sets, because states share a large common direction. Returns (n,) in [-1, 1].

    Example:
        >>> nearest(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 3.0]])).argmax()
        tensor(1)
    """
    centre = torch.cat([embeddings, forget_embeddings]).mean(0)
    points, forget = (
        functional.normalize((states - centre).float(), dim=1)
        for states in (embeddings, forget_embeddings)
    )
    return torch.cat([(block @ forget.T).max(1).values for block in points.split(BLOCK_ROWS)])


def gradient_orthogonal(forget_alignment: Tensor) -> Tensor:
    """Documents whose gradient is nearest to a right angle with the forget gradient first.

    forget_alignment (n,): cosine of a retain document's NLL gradient with the mean NLL gradient of
    the forget set, at the base model. Returns -|cosine|, (n,) in [-1, 0]: what is learned from the
    first changes, to first order, nothing of the forget set.
    """
    return -forget_alignment.abs()


def gradient_aligned(forget_alignment: Tensor) -> Tensor:
    """Documents whose gradient goes most along the forget gradient first: what a step of forgetting
    harms most, to first order.

    forget_alignment (n,): as in `gradient_orthogonal`; it is the score.
    """
    return forget_alignment


def keyword_neighbours(
    document_words: Sequence[AbstractSet[str]], forget_keywords: Sequence[Mapping[str, float]]
) -> Tensor:
    """Documents that name most of what the forget set is about first: the share of the forget set's
    keyword weight whose words all stand in the document, (n,) in [0, 1].

    document_words: the words (keys of `keywords.words`) of prompt and answer of every retain
    document. forget_keywords: keyword to weight of every forget document; a keyword weighs its sum
    over them. Without any keyword all scores are 0.

    Example:
        >>> words = [{"the", "red", "door"}, {"a", "door"}, {"night"}]
        >>> keyword_neighbours(words, [{"red door": 3.0}, {"door": 1.0}]).tolist()
        [1.0, 0.25, 0.0]
    """
    weights: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for keyword, weight in keyword_weights(forget_keywords).items():
        weights[tuple(word.key for word in words_of(keyword))] += weight
    # looked up by one of its words
    beginning_with: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for words in filter(None, weights):
        beginning_with[words[0]].append(words)
    total = fsum(weights.values())
    named = [
        fsum(
            weights[phrase]
            for word in present
            for phrase in beginning_with.get(word, ())
            if present.issuperset(phrase)
        )
        for present in map(frozenset, document_words)
    ]
    return torch.tensor([value / total if total else 0.0 for value in named])


# What a retain selector may ask for beside what `table.SELECTOR_INPUTS` gives of the documents it
# chooses from; n retain and m forget documents.
RETAIN_INPUTS = {
    "forget_embeddings": "(m, D) float32: the states of the forget documents inside base",
    "forget_alignment": "(n,) float32: cosine of a document's gradient and the forget set's",
    "forget_keywords": "list of keyword -> weight per forget document, of retain.extractor",
    "document_words": "list of sets: the words of a document's prompt and answer",
}
# what has no meaning there: an unlearning run, the retain set's own gradient, and keywords, which
# are the forget set's
OF_FORGET_ALONE = ("norms_along", "retain_alignment", "document_keywords")


@dataclass(frozen=True)
class RetainSelector(Selector):
    """A row of the family that needs the forget set beside the retain documents."""


# of the retain documents alone: the same functions as of the forget set
SHARED = ("random", "moderate", "el2n", "loss", "k_center", "facility_location")

RETAIN_SELECTORS: dict[str, Selector] = {name: SELECTORS[name] for name in SHARED} | {
    row.function.__name__: row
    for row in (
        RetainSelector(
            nearest,
            "like a forget document",
            "ours; neighbour sets as in 2509.05316 and 2502.11441",
            "neighbours are given or asked for by entity, domain or wording there; here those whose"
            " mean hidden states at the base model are near",
        ),
        RetainSelector(
            gradient_orthogonal,
            "gradient at a right angle to the forget set's",
            "ours; named so in the code of 'Effective unlearning in LLMs relies on the right data"
            " retention strategy' (github.com/praveensonu/icml2026)",
            "how that code measures it is not confirmed; here the cosine of whole NLL gradients at"
            " the base model, with the mean of the full forget set",
        ),
        RetainSelector(
            gradient_aligned,
            "gradient along the forget set's",
            "ours; gradients as what retrieves retain documents are RASLIK's (2604.16591)",
            "a randomised search on hashed gradients there, exact cosines here; which end of the"
            " order its retain documents come from is not confirmed",
        ),
        RetainSelector(
            keyword_neighbours,
            "names the forget set's keywords",
            "ours",
            "keywords of retain.extractor; a long document names more",
        ),
    )
}
