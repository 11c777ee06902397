"""Retain selectors by hand and by brute force, and what holds for all of them."""

import pytest
import torch
from torch import Tensor

from rayunlearn.ranges import required_inputs
from rayunlearn.selectors.retain import (
    RETAIN_SELECTORS,
    SHARED,
    gradient_aligned,
    gradient_orthogonal,
    keyword_neighbours,
    nearest,
)
from rayunlearn.selectors.table import SELECTORS, top_k_documents
from tests.selectors.test_selectors import INPUTS

FORGET = torch.randn(7, 8, generator=torch.Generator().manual_seed(9))
OF_RETAIN = INPUTS | {
    "forget_embeddings": FORGET,
    "forget_alignment": INPUTS["retain_alignment"],
    "document_words": [{f"word{i % 5}", f"word{i % 7}", "a"} for i in range(40)],
    "forget_keywords": [{f"word{i}": 1.0 + i, "word1 word3": 0.5} for i in range(7)],
}


def scores_of(name: str) -> Tensor:
    function = RETAIN_SELECTORS[name].function
    scores: Tensor = function(**{n: OF_RETAIN[n] for n in required_inputs(function)})
    return scores


@pytest.mark.parametrize("name", sorted(RETAIN_SELECTORS))
def test_every_retain_selector_gives_each_document_a_finite_score_and_the_same_again(
    name: str,
) -> None:
    scores = scores_of(name)
    assert scores.shape == (40,) and bool(torch.isfinite(scores).all())
    assert torch.equal(scores, scores_of(name))
    assert len(set(top_k_documents(scores, 0.25))) == 10


def test_what_looks_at_retain_documents_alone_is_the_forget_selector_itself() -> None:
    assert all(RETAIN_SELECTORS[name] is SELECTORS[name] for name in SHARED)


def test_nearest_is_the_largest_centred_cosine_as_a_loop_finds_it() -> None:
    embeddings = OF_RETAIN["embeddings"]
    assert isinstance(embeddings, Tensor)
    centre = torch.cat([embeddings, FORGET]).mean(0)
    by_loop = [
        max(
            float((a - centre) @ (b - centre) / (a - centre).norm() / (b - centre).norm())
            for b in FORGET
        )
        for a in embeddings
    ]
    assert nearest(embeddings, FORGET).tolist() == pytest.approx(by_loop, abs=1e-5)


def test_nearest_is_not_misled_by_a_direction_that_all_states_share() -> None:
    """All states are (100, y): the raw cosine of any two is 1 to four digits. Centred, y = 1.1 is
    on the side of the forget state 1 and y = -1 on the other.
    """
    retain = torch.tensor([[100.0, -1.0], [100.0, 1.1], [100.0, -1.2]])
    scores = nearest(retain, torch.tensor([[100.0, 1.0]]))
    assert top_k_documents(scores, 0.3) == [1]
    assert scores.tolist() == pytest.approx([-1.0, 1.0, -1.0])


def test_orthogonal_prefers_the_right_angle_and_aligned_the_same_direction() -> None:
    """Cosines 0.9, -0.1, -0.8, 0.3: by |cosine| 0.1, 0.3, 0.8, 0.9; by cosine 0.9, 0.3, ..."""
    cosines = torch.tensor([0.9, -0.1, -0.8, 0.3])
    assert top_k_documents(gradient_orthogonal(cosines), 1.0) == [1, 3, 2, 0]
    assert top_k_documents(gradient_aligned(cosines), 1.0) == [0, 3, 1, 2]


def test_keyword_neighbours_counts_a_phrase_only_where_all_its_words_stand() -> None:
    """Weights: "north gate" 2 + 1, "harbour" 1; 4 in all. Both: 4/4; the harbour alone: 1/4; the
    gate without the north: 0.
    """
    words = [{"the", "north", "gate", "harbour"}, {"harbour", "north"}, {"gate"}]
    keywords = [{"north gate": 2.0}, {"north gate": 1.0, "harbour": 1.0}]
    assert keyword_neighbours(words, keywords).tolist() == [1.0, 0.25, 0.0]


def test_without_keywords_no_document_is_a_neighbour() -> None:
    assert keyword_neighbours([{"a"}, set()], [{}]).tolist() == [0.0, 0.0]
