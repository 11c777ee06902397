"""Text about neither side of a generated dataset: everyday scenes made from a few lists, for
attacks that train on unrelated text.

No sentence names an entity or an answer of such a dataset (tests/attacks/test_weight_attacks.py
holds it to that).
"""

import itertools
import random

from rayunlearn.data.documents import Document

# per document, as many as a domain document has with its heading
SENTENCES = 5

PEOPLE = (
    "my neighbour",
    "the old driver",
    "a young visitor",
    "the clerk",
    "our teacher",
    "the shopkeeper",
)

DEEDS = (
    "opened the window",
    "waited for the train",
    "mended the gate",
    "read the newspaper",
    "carried a heavy box",
    "wrote a long letter",
)

TIMES = (
    "before breakfast",
    "in the afternoon",
    "after the rain",
    "on Sunday",
    "late in the evening",
    "during the holidays",
)

WEATHERS = (
    "warm and dry",
    "cold but bright",
    "cloudy all day",
    "windy at first",
    "wet until noon",
    "calm and mild",
)

GOODS = ("bread", "soap", "paper", "apples", "shoes", "blankets")

PATTERNS = (
    "{person} {deed} {time}.",
    "The weather was {weather}, so {person} stayed indoors.",
    "At the market {person} bought some {good}.",
    "{time} the price of {good} went up a little.",
    "Nobody saw how {person} {deed}.",
    "It was {weather} when the bus arrived {time}.",
)


def unrelated_documents(n: int, seed: int) -> tuple[Document, ...]:
    """`n` different documents of five sentences: a function of (n, seed)."""
    rng = random.Random(f"unrelated {seed}")
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[" ".join(_sentence(rng) for _ in range(SENTENCES))] = None
    return tuple(Document(answer=text) for text in texts)


def unrelated_texts() -> tuple[str, ...]:
    """Texts that hold every word `unrelated` can write, capital or not, at the beginning of a text
    or inside.
    """
    parts = (PEOPLE, DEEDS, TIMES, WEATHERS, GOODS)
    longest = max(map(len, parts))
    rows = [[part[index % len(part)] for part in parts] for index in range(longest)]
    sentences = [_say(pattern, *row) for pattern, row in itertools.product(PATTERNS, rows)]
    return (*sentences, " ".join(sentences))


def _sentence(rng: random.Random) -> str:
    return _say(
        rng.choice(PATTERNS),
        *(rng.choice(part) for part in (PEOPLE, DEEDS, TIMES, WEATHERS, GOODS)),
    )


def _say(pattern: str, person: str, deed: str, time: str, weather: str, good: str) -> str:
    text = pattern.format(person=person, deed=deed, time=time, weather=weather, good=good)
    return text[0].upper() + text[1:]
