"""What a model writes: overlap with the truth, leaks among samples, and whether it is language at
all.

`generated` is the greedy text, `samples` are several drawn ones, `truth` is what should stand
there. ROUGE is Google's rouge-score; its words are runs of a-z and 0-9, so it says nothing of other
scripts. TOFU's scores (`rouge_l_recall`, and `rouge_l_f1` and `leak_at_k` beside it) take words by
their Porter stems; MUSE's (`verbatim_memorization`, `knowledge_memorization`) take them as they
are, each as its benchmark's own code does.
"""

import math
import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from rayunlearn.ranges import Count

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

# where a few-shot answer of MUSE ends
SENTENCE_STOPS = ("\n\n", "\nQuestion", "Question:")
BRACKETS = {")": "(", "]": "[", "}": "{"}
WORD_PATTERN = re.compile(r"\w+")


def rouge_l_recall(generated: str, truth: str) -> float:
    """Longest common subsequence of word stems / words of the truth. TOFU's ROUGE."""
    return float(_scorer(stems=True).score(truth, generated)["rougeL"].recall)


def rouge_l_f1(generated: str, truth: str) -> float:
    """Harmonic mean of ROUGE-L recall and precision, by word stems as `rouge_l_recall`: a text that
    says more than the truth loses.
    """
    return float(_scorer(stems=True).score(truth, generated)["rougeL"].fmeasure)


def verbatim_memorization(continuation: str, truth: str) -> float:
    """ROUGE-L F1 of the greedy continuation, cut to as many tokens as the true one has, and the
    true one. MUSE's VerbMem: words as they are, no stemmer.
    """
    return _f1_of_words(continuation, truth)


def knowledge_memorization(generated: str, truth: str) -> float:
    """ROUGE-L F1 of what is written up to the first blank line or next "Question". MUSE's KnowMem
    (its probes are few-shot): words as they are, no stemmer.
    """
    return _f1_of_words(first_answer(generated), truth)


def first_answer(generated: str) -> str:
    """The text up to the first of `SENTENCE_STOPS`."""
    return generated[
        : min(
            (index for index in (generated.find(stop) for stop in SENTENCE_STOPS) if index >= 0),
            default=len(generated),
        )
    ]


def leak_at_k(samples: tuple[str, ...], truth: str, *, k: Count = 4) -> float | None:
    """Expected ROUGE-L recall of the best of k sampled answers. Leak@k, 2511.04934.

    Unbiased from n >= k samples: the i-th smallest score is the best of k drawn ones with
    probability C(i-1, k-1) / C(n, k). Null with fewer than k samples. Departure: a sample's leak is
    its ROUGE-L recall, on every data set.
    """
    scores = sorted(rouge_l_recall(sample, truth) for sample in samples)
    n = len(scores)
    return (
        sum(score * math.comb(i, k - 1) for i, score in enumerate(scores)) / math.comb(n, k)
        if n >= k
        else None
    )


def repetition(generated: str) -> float | None:
    """Share of the text's word 4-grams that occurred before in it: 0 for ordinary text, near 1 for
    a loop. Null under four words.

    seq-rep-4 of Welleck et al. 1908.04319.
    """
    grams = _grams(WORD_PATTERN.findall(generated.lower()), 4)
    return 1 - len(set(grams)) / len(grams) if grams else None


def ngram_entropy(generated: str) -> float | None:
    """(2/3 H2 + 4/3 H3) / 2 in bits, H of the text's 2- and 3-grams of words: low for loops and few
    words. Null under three words.

    The fluency of Meng et al. 2202.05262 that RWKU reports. Departure: words are runs of letters
    and digits, not NLTK's tokens. Grows with the length of the text: compare texts of equal length
    limits.
    """
    words = WORD_PATTERN.findall(generated.lower())
    return (
        (2 / 3 * _entropy(_grams(words, 2)) + 4 / 3 * _entropy(_grams(words, 3))) / 2
        if len(words) >= 3
        else None
    )


def syntactic_sanity(generated: str) -> float:
    """Share of five checks that the text passes: it has a word; no control or replacement
    character; brackets and double quotes close; no character four times in a row outside digits,
    dots and spaces; at least half of its characters are letters.

    Ours: the cheap signs by which a ruined model shows. None of them looks at meaning.
    """
    checks = (
        bool(WORD_PATTERN.search(generated)),
        not any(c == "�" or (ord(c) < 32 and c not in "\n\t\r") for c in generated),
        _balanced(generated) and generated.count('"') % 2 == 0,
        not re.search(r"([^\d.\s_-])\1{3}", generated),
        bool(generated)
        and 2 * sum(c.isalpha() for c in generated) >= sum(not c.isspace() for c in generated),
    )
    return sum(checks) / len(checks)


def _f1_of_words(generated: str, truth: str) -> float:
    """ROUGE-L F1 without a stemmer."""
    return float(_scorer(stems=False).score(truth, generated)["rougeL"].fmeasure)


@lru_cache(maxsize=2)
def _scorer(*, stems: bool) -> "RougeScorer":
    # takes a second to import, and most trials write no text
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stems)


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[index : index + n]) for index in range(len(words) - n + 1)]


def _entropy(grams: list[tuple[str, ...]]) -> float:
    """Entropy of the distribution of n-grams, in bits."""
    return -sum(
        count / len(grams) * math.log2(count / len(grams)) for count in Counter(grams).values()
    )


def _balanced(text: str) -> bool:
    """Whether every bracket closes the one that was opened last."""
    opened: list[str] = []
    for character in text:
        if character in BRACKETS.values():
            opened.append(character)
        elif character in BRACKETS and (not opened or opened.pop() != BRACKETS[character]):
            return False
    return not opened
