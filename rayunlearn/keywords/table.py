"""Keyword extractors: one document given what is known of the corpus.

Positional parameters name what an extractor needs: `page` (the document), `statistics` and
`retain_statistics` (word counts of forget and retain corpus), `phrase_states` (P, D) and
`page_state` (D,) (hidden states of the base model, one row per candidate), `word_gap` (one number
per word of the page) and `corpus_gap` (by word), in nats, base against gold, `word_gradient_gap`
and `corpus_gradient_gap`, the same of gradient norms, `links` (by word, how much it is tied to one
term of the forget corpus), `frames` (sentences with places left open, and how many sentences each
stands for) and `judged` (what a chat model answered). Keyword-only arguments are hyperparameters.
Keywords come best first; equal scores keep the order of the text. A document with a word has at
least one keyword, unless the extractor has a threshold; then it may have none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rayunlearn.errors import UserError
from rayunlearn.keywords.phrases import DocumentWords, Keyword, Phrase, group_phrases
from rayunlearn.keywords.statistics import (
    Frame,
    Statistics,
    framings,
    inverse_document_frequency,
    sentences_of,
    term_weight,
    z_of_words,
)
from rayunlearn.keywords.words import words_of
from rayunlearn.lazy import functional, np
from rayunlearn.ranges import Count, FamilyRow, Fraction, NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


def tfidf(
    page: DocumentWords, statistics: Statistics, *, earliness: NonNegative = 1.0
) -> list[Keyword]:
    """Sum over a phrase's words of (1 + ln tf) ln((N + 1) / df), times 1 + earliness / (1 +
    position / 20).

    tf counts the word in the document, df the documents with it, position the words before the
    phrase. Departures from plain TF-IDF: the unit is a phrase between stop words, and what is named
    early weighs more (0 turns it off). A word outside the statistics has df 1.
    """
    frequency = Counter(w.key for w in page.words)
    keys = list(frequency)
    counts = np.fromiter((statistics.document_counts[k] for k in keys), np.int64, len(keys))
    weights = term_weight(
        np.fromiter(frequency.values(), np.int64, len(keys))
    ) * inverse_document_frequency(counts, statistics.n_documents)
    weight = dict(zip(keys, weights.tolist(), strict=True))
    scores = [
        sum(weight[k] for k in p.keys) * (1 + earliness / (1 + p.places[0][0] / 20))
        for p in page.phrases
    ]
    return rank_keywords(page, page.phrases, scores)


def log_odds(
    page: DocumentWords,
    statistics: Statistics,
    retain_statistics: Statistics,
    *,
    prior_words: Positive = 1000.0,
    least_z: NonNegative = 2.5,
) -> list[Keyword]:
    """Runs of words that the forget corpus says significantly more often than the retain corpus.

    Word score: z of `statistics.log_odds_z` (Monroe, Colaresi and Quinn 2008). A keyword is a
    longest run of words with z > least_z (the paper draws the line at 1.96; many words are tested,
    so more is asked), its score the sum of z / sqrt(words). It needs no stop words. None may be
    left.
    """
    return runs_above_threshold(
        page, _z_of_words(page, statistics, retain_statistics, prior_words), least_z
    )


def linked(
    page: DocumentWords,
    statistics: Statistics,
    retain_statistics: Statistics,
    links: Mapping[str, float],
    *,
    prior_words: Positive = 1000.0,
    least_z: Positive = 2.5,
    least_link: Positive = 3.0,
) -> list[Keyword]:
    """The words of `log_odds`, and the words that are tied to one of them: what is said of a
    domain's terms in particular.

    links: by word the largest z of its frequency in sentences with one term against sentences
    without it (`statistics.link_z`). "honey" is an everyday word, but here it is said of Tubril
    alone. A keyword is a longest run of words above either threshold, scored as z / threshold, the
    better of the two. None may be left. Ours.
    """
    own_scores = _z_of_words(page, statistics, retain_statistics, prior_words)
    tied = [links.get(w.key, 0.0) for w in page.words]
    return runs_above_threshold(
        page,
        [max(z / least_z, link / least_link) for z, link in zip(own_scores, tied, strict=True)],
        1.0,
    )


def _z_of_words(
    page: DocumentWords, forget: Statistics, retain: Statistics, prior_words: float
) -> list[float]:
    z: list[float] = z_of_words([w.key for w in page.words], forget, retain, prior_words).tolist()
    return z


def slots(
    page: DocumentWords,
    frames: Mapping[Frame, int],
    *,
    changing: Count = 2,
    least_sentences: Count = 5,
) -> list[Keyword]:
    """What changes in sentences that are otherwise said again and again: "the glow of _ is _" says
    its two words of each other.

    Of all ways to leave 1 to `changing` words of a sentence open, the one that stands for the most
    different sentences of both corpora, the fewest words open where several do; its open words are
    keywords if those are `least_sentences` or more. Score: ln of their number. It finds names and
    values said once as well as often, in text written to a pattern (records, questions and answers,
    synthetic datasets); sentences of free prose do not come again, and there it finds nothing.
    Ours, after wrapper induction (Kushmerick 2000).
    """
    scores: list[float] = []
    for sentence in sentences_of(page.text):
        best = max(
            framings(sentence, changing), key=lambda framing: frames[framing[1]], default=((), ())
        )
        n_sentences = frames[best[1]] if best[0] else 0
        scores += [
            math.log(n_sentences) if n_sentences >= least_sentences and index in best[0] else 0.0
            for index in range(len(sentence))
        ]
    return runs_above_threshold(page, scores, 0.0)


def textrank(page: DocumentWords, *, window: Count = 3, damping: Fraction = 0.85) -> list[Keyword]:
    """Sum over a phrase's words of their PageRank in the graph of words that stand within `window`
    words of each other.

    Mihalcea and Tarau 2004. Departures: candidates are our phrases and not runs of tagged nouns and
    adjectives, only their words are in the graph, and edges weigh the number of co-occurrences.
    """
    inside = sorted(
        {index for p in page.phrases for first, last in p.places for index in range(first, last)}
    )
    keys = sorted({page.words[index].key for index in inside})
    row = {key: i for i, key in enumerate(keys)}
    edges = np.zeros((len(keys), len(keys)))
    for i, index in enumerate(inside):
        for other in inside[i + 1 : i + window]:
            if other - index < window and page.words[index].key != page.words[other].key:
                edges[row[page.words[index].key], row[page.words[other].key]] += 1
    rank = pagerank(edges + edges.T, damping)
    return rank_keywords(
        page, page.phrases, [float(sum(rank[row[k]] for k in p.keys)) for p in page.phrases]
    )


def pagerank(edges: np.ndarray, damping: float, tolerance: float = 1e-10) -> np.ndarray:
    """Stationary distribution (n,) of a walk over weighted edges (n, n) that restarts anywhere with
    1 - damping.

    A node without edges hands its share to all nodes.
    """
    n = len(edges)
    if n == 0:
        return np.zeros(0)
    out = edges.sum(1, keepdims=True)
    step = np.where(out > 0, edges / np.where(out > 0, out, 1), 1 / n)
    rank = np.full(n, 1 / n)
    for _ in range(200 if damping < 1 else 1000):
        moved = damping * rank @ step + (1 - damping) / n
        if float(np.abs(moved - rank).sum()) < tolerance:
            break
        rank = moved
    return rank


def yake(page: DocumentWords, *, longest: Count = 3) -> list[Keyword]:
    """YAKE (Campos et al. 2020) through its own library, with its English stop words; score 1 / (1
    + YAKE's score).

    Keywords whose words the text does not hold in that order (the library joins over some
    punctuation) are left out. Needs `pip install rayunlearn[keywords]`.
    """
    try:
        import yake as library
    except ImportError as problem:
        raise UserError(
            f"extractor 'yake' needs the package yake: pip install rayunlearn[keywords] ({problem})"
        ) from problem
    if not page.words:
        return []
    phrases = library.KeywordExtractor(lan="en", n=longest, top=100).extract_keywords(page.text)
    return keywords_in(page, [(text, 1 / (1 + float(score))) for text, score in phrases])


def embedding(
    page: DocumentWords, phrase_states: Tensor, page_state: Tensor, *, diversity: NonNegative = 0.0
) -> list[Keyword]:
    """Cosine of a phrase's mean hidden state with the document's, minus `diversity` times its
    cosine with what is taken already.

    After KeyBERT (Grootendorst 2020) and its maximal marginal relevance, with the base model's own
    hidden states instead of sentence embeddings. phrase_states (P, D) in the order of
    page.phrases, page_state (D,).
    """
    if not page.phrases:
        return []
    states, document_states = (
        functional.normalize(phrase_states.float(), dim=-1),
        functional.normalize(page_state.float(), dim=-1),
    )
    relevance, alike = (states @ document_states).tolist(), (states @ states.T).tolist()
    if diversity == 0:
        return rank_keywords(page, page.phrases, relevance)
    chosen: list[tuple[int, float]] = []
    candidates = list(range(len(page.phrases)))
    while candidates:
        gains = [
            relevance[i] - diversity * max((alike[i][j] for j, _ in chosen), default=0.0)
            for i in candidates
        ]
        best = max(range(len(candidates)), key=gains.__getitem__)
        chosen.append((candidates.pop(best), gains[best]))
    return [page.keyword(page.phrases[i], gain) for i, gain in chosen]


def loss_gap(
    page: DocumentWords,
    word_gap: Sequence[float],
    corpus_gap: Mapping[str, float],
    *,
    least: NonNegative = 0.5,
) -> list[Keyword]:
    """Runs of words that base predicts better than a model that never saw the forget set: where the
    knowledge sits.

    A word counts with the larger of its own gap here and its mean gap over the forget corpus (nats,
    gold loss - base loss, summed over its tokens), because what the text before it does not give
    away is predicted by neither model. A keyword is a longest run of words above `least`, its score
    the sum / sqrt(words). None may be left. Ours.
    """
    return runs_above_threshold(
        page,
        [max(gap, corpus_gap.get(w.key, 0.0)) for w, gap in zip(page.words, word_gap, strict=True)],
        least,
    )


def gradient_gap(
    page: DocumentWords,
    word_gradient_gap: Sequence[float],
    corpus_gradient_gap: Mapping[str, float],
    *,
    least: NonNegative = 0.5,
) -> list[Keyword]:
    """Runs of words whose loss still pulls at a model that never saw the forget set and no longer
    at base: where the knowledge sits.

    As `loss_gap`, with gradient norms instead of losses
    (`keywords.model_scores.word_gradients`: with respect to the logits, from 0 to sqrt 2), so one
    word that gold finds absurd counts no more than one that it merely does not expect. None may be
    left. Ours.
    """
    return runs_above_threshold(
        page,
        [
            max(gap, corpus_gradient_gap.get(w.key, 0.0))
            for w, gap in zip(page.words, word_gradient_gap, strict=True)
        ],
        least,
    )


def judge(page: DocumentWords, judged: Sequence[str]) -> list[Keyword]:
    """What a chat model named (`keywords.llm_judge`), where the text has it; the first named comes
    first.

    The coreset paper's way (2504.10185, appendix E: OpenAI o1, prompt for biology); the prompt is
    ours.
    """
    return keywords_in(page, [(text, 1 / (1 + rank)) for rank, text in enumerate(judged)])


def runs_above_threshold(
    page: DocumentWords, scores: Sequence[float], minimum: float
) -> list[Keyword]:
    """The longest runs of words whose score is above `least`, within punctuation; score: sum /
    sqrt(words), the best place's.
    """
    places: list[tuple[int, int]] = []
    for index, (word, score) in enumerate(zip(page.words, scores, strict=True)):
        if score > minimum:
            goes_on = bool(places) and places[-1][1] == index and not word.opens
            places[-1:] = (
                [(places[-1][0], index + 1)] if goes_on else [*places[-1:], (index, index + 1)]
            )
    phrases = group_phrases(page.words, places)
    values = [max(sum(scores[a:b]) / math.sqrt(b - a) for a, b in p.places) for p in phrases]
    return rank_keywords(page, phrases, values)


def keywords_in(page: DocumentWords, named: Iterable[tuple[str, float]]) -> list[Keyword]:
    """Named phrases with their scores as keywords of the page: every place where their words stand
    in that order.
    """
    starts: dict[str, list[int]] = {}
    for index, word in enumerate(page.words):
        starts.setdefault(word.key, []).append(index)
    best: dict[tuple[str, ...], tuple[Phrase, float]] = {}
    for text, score in named:
        keys = tuple(w.key for w in words_of(text))
        places = [(index, index + len(keys)) for index in starts.get(keys[0], ())] if keys else []
        places = [(a, b) for a, b in places if tuple(w.key for w in page.words[a:b]) == keys]
        if places:
            best.setdefault(keys, (Phrase(keys, tuple(places)), score))
    return rank_keywords(page, [p for p, _ in best.values()], [s for _, s in best.values()])


def rank_keywords(
    page: DocumentWords, phrases: Sequence[Phrase], scores: Sequence[float]
) -> list[Keyword]:
    """Phrases as keywords, best first; equal scores keep their order."""
    order = sorted(range(len(phrases)), key=lambda i: -scores[i])
    return [page.keyword(phrases[i], float(scores[i])) for i in order]


EXTRACTORS: dict[str, FamilyRow[list[Keyword]]] = {
    row.function.__name__: row
    for row in (
        FamilyRow(
            tfidf,
            "phrases by TF-IDF and place",
            "Sparck Jones 1972; place after Witten et al. 1999 (KEA)",
        ),
        FamilyRow(
            log_odds,
            "forget against retain, log-odds with a prior",
            "Monroe et al. 2008, Fightin' Words",
        ),
        FamilyRow(
            linked,
            "terms of the forget corpus and what is said of them",
            "ours, after Monroe et al. 2008",
        ),
        FamilyRow(
            slots,
            "what changes in sentences that are said again and again",
            "ours, after Kushmerick 2000",
        ),
        FamilyRow(textrank, "PageRank of words that stand together", "Mihalcea and Tarau 2004"),
        FamilyRow(yake, "YAKE, its own library", "Campos et al. 2020"),
        FamilyRow(
            embedding,
            "nearest to the document in the base model's states",
            "Grootendorst 2020 (KeyBERT), states as in ours",
        ),
        FamilyRow(loss_gap, "what base knows and gold does not", "ours"),
        FamilyRow(
            gradient_gap,
            "what pulls at gold and no longer at base",
            "ours; the norm is EL2N of a token, Paul et al. 2021",
        ),
        FamilyRow(judge, "named by a chat model", "coreset paper 2504.10185, appendix E"),
    )
}
