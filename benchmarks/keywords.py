"""Keyword extractors against gold sets, beside the YAKE and RAKE libraries, with one scorer.

    python benchmarks/keywords.py --gold DIR [--sets Inspec SemEval2017]
    python benchmarks/keywords.py --synthetic [--base MODEL --gold-model MODEL]

`--synthetic` uses the domain synthetic dataset, whose generator knows the true terms; with base and
gold model of the dataset (of the run's cache) also the extractors that ask a model. DIR holds gold
sets in the layout of github.com/LIAAD/KeywordExtractor-Datasets, unpacked:
DIR/Inspec/docsutf8/*.txt and DIR/Inspec/keys/*.key. It has no licence, so it is fetched to measure
and never copied. Needs `pip install .[bench]`.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import regex
from nltk.stem import PorterStemmer

from rayunlearn.config import Data
from rayunlearn.corpus.extract_keywords import extractor_arguments
from rayunlearn.data.documents import Corpus
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.errors import UserError
from rayunlearn.keywords.extract import KeywordInputs, ModelWithTokenizer, extract
from rayunlearn.keywords.phrases import common_words, document_words
from rayunlearn.keywords.statistics import statistics_of
from rayunlearn.keywords.table import EXTRACTORS, textrank, tfidf
from rayunlearn.keywords.words import words_of
from rayunlearn.models.load import load_model

CUTS = (5, 10, 15)
Ranked = list[str]
STEMMER = PorterStemmer()


@dataclass(frozen=True)
class Gold:
    """A gold set: texts and the stemmed keys of every document, by document name."""

    name: str
    texts: dict[str, str]
    keys: dict[str, frozenset[str]]


def read_gold(directory: Path) -> Gold:
    """Read one gold set. Raises UserError without documents;
    a document without keys is left out.
    """
    texts: dict[str, str] = {}
    keys: dict[str, frozenset[str]] = {}
    for file in sorted((directory / "docsutf8").glob("*.txt")):
        key_file = directory / "keys" / f"{file.stem}.key"
        found = (
            frozenset(map(stemmed, key_file.read_text(encoding="utf-8").splitlines())) - {""}
            if key_file.is_file()
            else frozenset()
        )
        if found:
            texts[file.stem], keys[file.stem] = file.read_text(encoding="utf-8"), found
    if not texts:
        raise UserError(f"a gold set must have docsutf8/*.txt and keys/*.key, got {directory}")
    return Gold(directory.name, texts, keys)


def stemmed(phrase: str) -> str:
    """Porter stems of the words, hyphens apart, joined by blanks: what has to match exactly."""
    return " ".join(STEMMER.stem(part) for word in words_of(phrase) for part in word.key.split("-"))


def score(predicted: Sequence[str], gold: frozenset[str], cut: int) -> tuple[float, float, float]:
    """Precision, recall and F1 of the first `cut` different stemmed predictions."""
    first = list(dict.fromkeys(s for s in map(stemmed, predicted) if s))[:cut]
    hits = len(gold.intersection(first))
    precision, recall = hits / max(1, len(first)), hits / len(gold)
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def means(predictions: Mapping[str, Ranked], gold: Gold, cut: int) -> tuple[float, float, float]:
    """Means over documents."""
    rows = [score(predictions[name], keys, cut) for name, keys in gold.keys.items()]
    precision, recall, f1 = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return precision, recall, f1


def our_tfidf(texts: Sequence[str]) -> list[Ranked]:
    """`tfidf` with the statistics of these texts."""
    statistics = statistics_of(texts)
    common = common_words(statistics)
    return [[k.text for k in tfidf(document_words(text, common), statistics)] for text in texts]


def our_textrank(texts: Sequence[str]) -> list[Ranked]:
    """`textrank`, which looks at one document only."""
    return [[k.text for k in textrank(document_words(text))] for text in texts]


def yake_library(texts: Sequence[str]) -> list[Ranked]:
    """The yake package with its defaults (English, up to three words)."""
    from yake import KeywordExtractor

    extractor = KeywordExtractor(lan="en", n=3, top=50)
    return [[text for text, _ in extractor.extract_keywords(document)] for document in texts]


def rake_library(texts: Sequence[str]) -> list[Ranked]:
    """The rake-nltk package with YAKE's stop word list (the better of two tried) and a tokeniser
    that needs no download.
    """
    import yake
    from rake_nltk import Rake

    stop = set(
        (Path(yake.__file__).parent / "core/StopwordsList/stopwords_en.txt")
        .read_text(encoding="utf-8")
        .split()
    )
    token = regex.compile(r"\w+(?:[-']\w+)*|[^\w\s]")
    rake = Rake(
        stopwords=stop, sentence_tokenizer=lambda text: [text], word_tokenizer=token.findall
    )
    ranked = []
    for text in texts:
        rake.extract_keywords_from_text(text)
        ranked.append(rake.get_ranked_phrases())
    return ranked


CONTESTANTS: dict[str, Callable[[Sequence[str]], list[Ranked]]] = {
    "tfidf (ours)": our_tfidf,
    "textrank (ours)": our_textrank,
    "YAKE library": yake_library,
    "RAKE library": rake_library,
}


def table(gold: Gold) -> list[str]:
    """Markdown rows: contestant, precision / recall / F1 at every cut, documents per second."""
    rows = []
    for name, contestant in CONTESTANTS.items():
        begun = time.perf_counter()
        found = contestant(list(gold.texts.values()))
        rate = len(gold.texts) / (time.perf_counter() - begun)
        predictions = dict(zip(gold.texts, found, strict=True))
        cells = [" / ".join(f"{v:.3f}" for v in means(predictions, gold, cut)) for cut in CUTS]
        rows.append(
            f"| {gold.name} ({len(gold.texts)}) | {name} | {' | '.join(cells)} | {rate:.0f} |"
        )
    return rows


def true_terms(corpus: Corpus, with_values: bool) -> list[frozenset[str]]:
    """Words of every forget document that carry its facts: the invented names, and the values that
    facts give them.
    """
    value = {fact: probe.answer for probe in corpus.probes["forget"] for fact in probe.facts}
    return [
        frozenset(
            t.lower()
            for f in d.facts
            for t in ((f.split(":")[0], value[f]) if with_values else (f.split(":")[0],))
        )
        for d in corpus.forget
    ]


def word_f1(found: Sequence[str], truth: frozenset[str]) -> float:
    """F1 of two sets of words."""
    hits = len(truth.intersection(found))
    return 2 * hits / (len(set(found)) + len(truth))


def bed_rows(redundancy: int, base: str, gold: str) -> list[str]:
    """Markdown rows: F1 of all words that an extractor names, and of its first words, as many as
    there are terms.
    """
    corpus = generate_dataset(Data(redundancy=redundancy))
    lenders = [
        (lambda name=name: ModelWithTokenizer(*load_model(name))) if name else None
        for name in (base, gold)
    ]
    rows = []
    for name in [
        n
        for n in EXTRACTORS
        if n != "judge" and (base or n not in ("embedding", "loss_gap", "gradient_gap"))
    ]:
        arguments = extractor_arguments(name, {})
        known = KeywordInputs(
            corpus.forget, corpus.retain, arguments=arguments, base=lenders[0], gold=lenders[1]
        )
        words = [
            list(dict.fromkeys(w.key for k in found for w in words_of(k.text)))
            for found in extract(name, known, arguments)
        ]
        cells = []
        for truth in (true_terms(corpus, False), true_terms(corpus, True)):
            pairs = list(zip(words, truth, strict=True))
            cells += [
                fmean(word_f1(w, t) for w, t in pairs),
                fmean(word_f1(w[: len(t)], t) for w, t in pairs),
            ]
        rows.append(f"| {redundancy} | {name} | " + " | ".join(f"{c:.3f}" for c in cells) + " |")
    return rows


def main() -> None:
    """Print one table over the gold sets of DIR, or over the synthetic dataset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gold", type=Path)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--base", default="")
    parser.add_argument("--gold-model", default="")
    parser.add_argument("--sets", nargs="+", default=["Inspec", "SemEval2017"])
    options = parser.parse_args()
    if options.synthetic:
        print(
            "| mentions per fact | extractor | names: all | names: first | names, values: all |"
            " names, values: first |"
        )
        print("|---|---|---|---|---|---|")
        for redundancy in (20, 10, 8, 4, 2, 1):
            # the models were trained this one
            at_default = redundancy == Data().redundancy
            print(
                "\n".join(
                    bed_rows(redundancy, options.base * at_default, options.gold_model * at_default)
                ),
                flush=True,
            )
    if options.gold is None:
        return
    print(
        "| dataset (documents) | extractor | P / R / F1 at 5 | at 10 | at 15 | documents/s"
        " |\n|---|---|---|---|---|---|"
    )
    for name in options.sets:
        print("\n".join(table(read_gold(options.gold / name))), flush=True)


if __name__ == "__main__":
    main()
