"""Words, corpus statistics and extractors: by hand, against closed forms, and what holds for all of
them.
"""

import math
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayunlearn.config import Data
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.keywords.phrases import Keyword, common_words, document_words
from rayunlearn.keywords.statistics import (
    EMPTY_STATISTICS,
    cooccurrences_of,
    frames_of,
    link_z,
    log_odds_z,
    merge,
    sentences_of,
    statistics_of,
    word_z,
)
from rayunlearn.keywords.table import (
    EXTRACTORS,
    embedding,
    judge,
    keywords_in,
    linked,
    log_odds,
    loss_gap,
    pagerank,
    slots,
    textrank,
    tfidf,
)
from rayunlearn.keywords.words import WORD, key_of, words_of
from rayunlearn.ranges import options_of, required_inputs

TEXTS = ["red blue", "blue green", "blue"]
HARD = [
    "",
    " \n\t",
    "!?...",
    "word",
    "the",
    "def fit_model(x1, y2): return x1['key']->b; // naïve",
    "low-cost sensors don't drift; state-of-the-art",
    "显卡 and हिन्दी भाषा, ภาษาไทย, Ελλάς, 𝔘𝔫𝔦, cafe\u0301",
    "a" * 5000,
    "\x00 \ufeff control\u200bchars \U0001f600",
]


def test_words_are_found_in_code_and_in_scripts_with_marks_or_without_spaces() -> None:
    assert [w.key for w in words_of("Fit_model(x1); don't LOW-cost")] == [
        "fit_model",
        "x1",
        "don't",
        "low-cost",
    ]
    assert [w.key for w in words_of("GPU显卡 हिन्दी")] == ["gpu", "显", "卡", "हिन्दी"]


def test_a_phrase_ends_at_punctuation_and_goes_on_over_white_space() -> None:
    assert [w.opens for w in words_of("big cat\n runs, fast/light")] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_two_unicode_spellings_of_a_word_are_one_key() -> None:
    assert key_of("cafe\u0301") == key_of("CAF\u00c9") == "caf\u00e9"


# later Unicode versions give names to unassigned characters
@given(st.text(st.characters(exclude_categories=["Cn", "Cs"])))
def test_words_cover_their_characters_in_order_and_polars_finds_the_same(text: str) -> None:
    words = words_of(text)
    assert all(w.start < w.end for w in words) and all(a.end <= b.start for a, b in pairwise(words))
    assert [text[w.start : w.end] for w in words] == (
        pl.Series([text]).str.extract_all(WORD).to_list()[0] or []
    )


def test_statistics_count_occurrences_and_documents_by_hand() -> None:
    counted = statistics_of([*TEXTS, "Blue blue red"])
    assert (counted.n_documents, counted.n_words) == (4, 8)
    assert counted.counts == {"blue": 5, "red": 2, "green": 1} and counted.document_counts == {
        "blue": 4,
        "red": 2,
        "green": 1,
    }


@given(st.lists(st.text(alphabet="ab ", max_size=8)), st.integers(0, 5))
def test_statistics_of_parts_merge_to_those_of_the_whole(texts: list[str], cut: int) -> None:
    assert (
        merge([statistics_of(texts[:cut]), statistics_of(texts[cut:])]) == statistics_of(texts)
        and merge([]) == EMPTY_STATISTICS
    )


def test_candidates_are_runs_between_stop_words_digits_and_punctuation_without_adverbs() -> None:
    page = document_words(
        "The very fast neural network of 12 layers quickly learns; neural network."
    )
    assert [p.keys for p in page.phrases] == [
        ("fast", "neural", "network"),
        ("layers", "quickly", "learns"),
        ("neural", "network"),
    ]
    assert [p.keys for p in document_words("really new networks usually").phrases] == [
        ("networks",)
    ]


def test_a_document_of_stop_words_has_its_words_as_candidates() -> None:
    assert [p.keys for p in document_words("the the of").phrases] == [("the",), ("of",)]


def test_common_words_need_a_corpus_that_is_large_enough() -> None:
    texts = ["und er kam"] * 40 + ["und nie"] * 15
    assert common_words(statistics_of(texts)) == {"und", "er", "kam"}
    assert common_words(statistics_of(texts[:49])) == frozenset()


def test_tfidf_by_hand() -> None:
    """3 documents, df blue 3, red 1. "red blue": (1 + ln 1)(ln 4/1 + ln 4/3) = 1.674, at position 0
    times 2 with earliness 1.
    """
    page, counted = document_words("red blue"), statistics_of(TEXTS)
    assert tfidf(page, counted, earliness=0)[0].score == pytest.approx(
        math.log(4) + math.log(4 / 3)
    )
    assert tfidf(page, counted)[0].score == pytest.approx(2 * (math.log(4) + math.log(4 / 3)))


def test_tfidf_counts_repetitions_by_their_logarithm_and_spans_every_occurrence() -> None:
    """red, red: tf 2 -> (1 + ln 2) ln 4."""
    (keyword,) = tfidf(document_words("red, Red"), statistics_of(TEXTS), earliness=0)
    assert keyword == Keyword(
        "red", pytest.approx((1 + math.log(2)) * math.log(4)), ((0, 3), (5, 8))
    )


def test_log_odds_by_hand() -> None:
    """Forget a a b (3 words), retain b (1 word); prior 4 words: a 4 x 2/4 = 2, b 2.
    a: ln(4 / 3) - ln(2 / 3) = ln 2; variance 1/4 + 1/2; z = 0.693 / 0.866 = 0.800."""
    assert log_odds_z(2, 3, 0, 1, 4) == pytest.approx(math.log(2) / math.sqrt(0.75))
    assert log_odds_z(1, 3, 1, 1, 4) == pytest.approx(-math.log(2) / math.sqrt(1 / 3 + 1 / 3))
    assert log_odds_z(0, 3, 0, 1, 4) == 0
    assert word_z(statistics_of(["a a b"]), statistics_of(["b"]), 4)["a"] == log_odds_z(
        2, 3, 0, 1, 4
    )


def test_links_count_the_words_beside_an_anchor_sentence_by_sentence() -> None:
    """Zor stands in two sentences, with honey three times and eats once; pib in one of its own."""
    links = cooccurrences_of(["Zor eats honey. Pib glows!", "Honey, for zor and honey"], {"zor"})
    assert links.counts == {
        "honey": 3,
        "zor": 2,
        "eats": 1,
        "pib": 1,
        "glows": 1,
        "for": 1,
        "and": 1,
    }
    assert links.neighbours == {"zor": {"eats": 1, "honey": 3, "for": 1, "and": 1}}
    assert link_z(links, 10)["honey"] == log_odds_z(3, 6, 0, 4, 10) and "pib" not in link_z(
        links, 10
    )


def test_linked_finds_the_terms_and_what_is_said_of_them_on_the_domain_bed() -> None:
    """Terms: the invented names and the values that facts give them; the words around are the same
    for every value.
    """
    corpus = generate_dataset(Data(redundancy=20))
    answer = {fact: probe.answer for probe in corpus.probes["forget"] for fact in probe.facts}
    forget, retain = (
        statistics_of(d.answer for d in side) for side in (corpus.forget, corpus.retain)
    )
    anchors = {w for w, z in word_z(forget, retain, 1000).items() if z > 2.5}
    links = link_z(cooccurrences_of((d.answer for d in corpus.forget), anchors), 1000)
    total = 0.0
    for document in corpus.forget:
        truth = {
            name.lower() for fact in document.facts for name in (fact.split(":")[0], answer[fact])
        }
        found = {
            w.key
            for k in linked(document_words(document.answer), forget, retain, links)
            for w in words_of(k.text)
        }
        total += 2 * len(found & truth) / (len(found) + len(truth))
    assert total / len(corpus.forget) >= 0.9


def test_frames_count_different_sentences_and_leave_more_words_than_they_open() -> None:
    """Four words: one may be open (4 frames of each sentence), two would leave no more than they
    open. Said twice counts once.
    """
    frames = frames_of(["red ink dries fast. Red ink dries fast! blue ink dries fast", "a b"], 2)
    assert frames[None, "ink", "dries", "fast"] == 2 and frames["red", None, "dries", "fast"] == 1
    assert len(frames) == 7 and (None, None, "dries", "fast") not in frames


def test_slots_are_the_open_places_of_the_frame_that_most_sentences_share() -> None:
    """Five inks dry fast in five places: two open words of six share 5 sentences, ink alone or
    place alone 1. Score ln 5.
    """
    texts = [f"in {place} the {ink} ink dries" for place, ink in zip("stuvw", "abcde", strict=True)]
    text = f"{texts[1]}. A sentence of its own stands here."
    frames = frames_of([*texts[:1], text, *texts[2:]], 2)
    found = slots(document_words(text), frames)
    assert [(k.text, k.score) for k in found] == [
        ("t", pytest.approx(math.log(5))),
        ("b", pytest.approx(math.log(5))),
    ]
    assert (
        slots(document_words(text), frames, least_sentences=6)
        == []
        == slots(document_words(text), frames, changing=1)
    )


@pytest.mark.parametrize("text", HARD)
def test_sentences_hold_the_words_of_the_text_in_order(text: str) -> None:
    assert [key for sentence in sentences_of(text) for key in sentence] == [
        w.key for w in words_of(text)
    ]


@pytest.mark.parametrize(("redundancy", "seed"), [(1, 5), (2, 6), (4, 7), (8, 8)])
def test_slots_find_names_and_values_of_the_domain_bed_however_seldom_they_are_said(
    redundancy: int, seed: int
) -> None:
    """The truth is the generator's; other seeds than those looked at when the
    extractor was made.
    """
    corpus = generate_dataset(Data(redundancy=redundancy, seed=seed))
    answer = {fact: probe.answer for probe in corpus.probes["forget"] for fact in probe.facts}
    frames = frames_of((d.answer for side in (corpus.forget, corpus.retain) for d in side), 2)
    total = 0.0
    for document in corpus.forget:
        truth = {
            name.lower() for fact in document.facts for name in (fact.split(":")[0], answer[fact])
        }
        found = {
            w.key for k in slots(document_words(document.answer), frames) for w in words_of(k.text)
        }
        total += 2 * len(found & truth) / (len(found) + len(truth))
    assert total / len(corpus.forget) >= 0.9


def test_log_odds_keeps_runs_of_words_that_the_forget_corpus_says_more() -> None:
    forget, retain = ["the dark matter halo is big"] * 99, ["the dark night is big"] * 99
    found = log_odds(document_words(forget[0]), statistics_of(forget), statistics_of(retain))
    assert [k.text for k in found] == ["matter halo"] and found[0].spans == ((9, 20),)


def test_a_corpus_of_one_word_has_no_log_odds() -> None:
    assert log_odds(document_words("a"), statistics_of(["a"]), statistics_of(["a"])) == []


def test_pagerank_of_a_path_solves_its_linear_system() -> None:
    """The stationary vector solves r = d P'r + (1 - d)/n;
    a dangling node hands its share to all.
    """
    edges = np.array([[0.0, 2, 1, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    step = np.array([[0, 2 / 3, 1 / 3, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0.25] * 4])
    exact = np.linalg.solve(np.eye(4) - 0.85 * step.T, np.full(4, 0.15 / 4))
    assert pagerank(edges, 0.85) == pytest.approx(exact, abs=1e-8)


def test_textrank_prefers_the_word_that_stands_with_most_others() -> None:
    assert (
        textrank(document_words("star orbit; star mass; star light; planet"))[-1].text == "planet"
    )
    found = [
        k.text for k in textrank(document_words("star, orbit, star, mass, star, light"), window=2)
    ]
    assert found[0] == "star"


def test_embedding_ranks_by_cosine_and_diversity_pushes_the_near_copy_back() -> None:
    """Cosines 0.99 0.98 0.5 with the document; the second is nearly the first (0.9996), the third
    is not.
    """
    page = document_words("alpha; beta; gamma")
    states = torch.tensor([[0.99, 0.141], [0.98, 0.199], [0.5, -0.866]])
    document = torch.tensor([2.0, 0.0])
    assert [k.text for k in embedding(page, states, document)] == ["alpha", "beta", "gamma"]
    assert [k.text for k in embedding(page, states, document, diversity=0.9)] == [
        "alpha",
        "gamma",
        "beta",
    ]


def test_loss_gap_takes_runs_above_the_threshold_and_the_corpus_speaks_for_words() -> None:
    """Gaps 3, 1, 0.1, 0.1; corpus says blue 2. Runs: (3 + 1) / sqrt 2 = 2.83 and 2."""
    found = loss_gap(
        document_words("Zor glows at blue"), [3.0, 1.0, 0.1, 0.1], {"blue": 2.0}, least=0.5
    )
    assert [(k.text, k.score) for k in found] == [
        ("Zor glows", pytest.approx(4 / math.sqrt(2))),
        ("blue", 2.0),
    ]


def test_what_a_judge_names_is_looked_up_in_the_text_and_made_up_words_are_dropped() -> None:
    page = document_words("Anthrax spores; ANTHRAX SPORES spread.")
    assert judge(page, ["anthrax spores", "ricin", "anthrax Spores", "spread"]) == [
        Keyword("Anthrax spores", 1.0, ((0, 14), (16, 30))),
        Keyword("spread", 1 / 4, ((31, 37),)),
    ]
    assert keywords_in(page, [("!!", 1.0)]) == []


def inputs_for(text: str) -> dict[str, object]:
    page = document_words(text)
    n = len(page.words)
    generator = torch.Generator().manual_seed(0)
    return {
        "page": page,
        "statistics": statistics_of([*HARD, text]),
        "retain_statistics": statistics_of(TEXTS),
        "phrase_states": torch.randn(len(page.phrases), 4, generator=generator),
        "page_state": torch.randn(4, generator=generator),
        "word_gap": [0.1 * (i % 9) for i in range(n)],
        "word_gradient_gap": [0.1 * (i % 9) for i in range(n)],
        "corpus_gradient_gap": {},
        "corpus_gap": {},
        "links": {"word": 5.0},
        "frames": frames_of(
            [
                text,
                "low-cost sensors drift",
                "low-cost sensors don't drift",
                "low-cost sensors may drift",
            ],
            2,
        ),
        "judged": ["word", "low-cost sensors"],
    }


@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_every_extractor_gives_ranked_keywords_whose_spans_hold_their_words(
    name: str, text: str
) -> None:
    if name == "yake":
        pytest.importorskip("yake", reason="the yake package is not installed")
    inputs, function = inputs_for(text), EXTRACTORS[name].function
    found = function(**{n: inputs[n] for n in required_inputs(function)})
    assert [k.score for k in found] == sorted((k.score for k in found), reverse=True) and all(
        math.isfinite(k.score) for k in found
    )
    for keyword in found:
        keys = [w.key for w in words_of(keyword.text)]
        assert keyword.spans and all(
            [w.key for w in words_of(text[a:b])] == keys for a, b in keyword.spans
        )
    assert len({tuple(w.key for w in words_of(k.text)) for k in found}) == len(found)
    assert (
        EXTRACTORS[name].source
        and function.__doc__
        and all(o.rule is not None for o in options_of(function))
    )


@pytest.mark.parametrize("name", ["tfidf", "textrank", "embedding"])
def test_a_document_of_one_word_has_that_keyword(name: str) -> None:
    inputs, function = inputs_for("word"), EXTRACTORS[name].function
    assert [k.text for k in function(**{n: inputs[n] for n in required_inputs(function)})] == [
        "word"
    ]
