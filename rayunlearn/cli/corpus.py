"""`rayunlearn keywords`, `score` and `books`: jobs over a whole corpus."""

import argparse
from pathlib import Path
from typing import Any

from rayunlearn.cli.arguments import (
    DONE,
    add_address_option,
    add_command,
    add_set_option,
    output_folder,
)
from rayunlearn.cli.output import console_for_output
from rayunlearn.config import Data, parse_assignments


def add_keywords_command(commands: Any) -> None:
    """`keywords CORPUS`."""
    added = add_command(
        commands, "keywords", keywords, "find the keywords of a corpus and write them to Parquet"
    )
    _add_corpus(added, "keywords.parquet")
    added.add_argument(
        "--extractor", metavar="NAME", required=True, help="see `rayunlearn list extractors`"
    )
    _add_keyword_models(added)
    add_set_option(added, "e.g. tfidf.earliness=0")
    added.add_argument(
        "--top",
        metavar="N",
        type=int,
        default=0,
        help="keywords of a document that are written, the best (default: all)",
    )
    added.add_argument(
        "--show",
        metavar="N",
        type=int,
        default=3,
        help="documents whose keywords are printed (default: 3)",
    )


def _add_keyword_models(added: argparse.ArgumentParser) -> None:
    """The second corpus and the models that some extractors need."""
    added.add_argument(
        "--retain",
        metavar="CORPUS",
        default="",
        help=(
            "what the corpus is compared with (log_odds, linked; slots may); a synthetic dataset"
            " brings its own"
        ),
    )
    added.add_argument(
        "--base",
        metavar="MODEL",
        default="",
        help="directory or Hub name (embedding, loss_gap, gradient_gap)",
    )
    added.add_argument(
        "--gold",
        metavar="MODEL",
        default="",
        help="a model that never saw the corpus (loss_gap, gradient_gap)",
    )
    added.add_argument("--judge", metavar="MODEL", default="", help="a chat model (judge)")


def add_score_command(commands: Any) -> None:
    """`score CORPUS`."""
    added = add_command(
        commands,
        "score",
        score_documents,
        "score the documents of a corpus by one forward pass of a model and write them to Parquet",
    )
    _add_corpus(added, "scores.parquet")
    added.add_argument("--base", metavar="MODEL", required=True, help="directory or Hub name")
    added.add_argument(
        "--scores",
        metavar="NAME,NAME",
        default="loss",
        help="loss, min_k, min_k_plus, el2n, zlib (default: loss)",
    )
    added.add_argument(
        "--template",
        metavar="TEXT",
        default=Data.template,
        help="as data.template, for documents with a prompt",
    )
    added.add_argument(
        "--max-tokens",
        metavar="N",
        type=int,
        default=Data.max_tokens,
        help="as data.max_tokens; a longer document loses its end",
    )
    add_set_option(added, "e.g. min_k.fraction=0.2")


def _add_corpus(added: argparse.ArgumentParser, output: str) -> None:
    """What is read, where the rows go (`output` by default), and what does the work."""
    added.add_argument("corpus", metavar="CORPUS", help=CORPUS_HELP)
    added.add_argument(
        "--columns",
        metavar="OURS=THEIRS",
        default="",
        help="as data.columns: answer=text,prompt=question",
    )
    added.add_argument(
        "--chunk-words",
        metavar="N",
        type=int,
        default=0,
        help="cut documents after every N words (default: they stay whole)",
    )
    added.add_argument("--text-unit", dest="unit", metavar="UNIT", default="", help=UNIT_HELP)
    added.add_argument(
        "--output",
        metavar="PATH",
        type=Path,
        default=Path(output),
        help=f"a .parquet file, or a new folder of them ({output})",
    )
    added.add_argument("--engine", metavar="auto|local|ray", default="auto", help=ENGINE_HELP)
    added.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=0,
        help="processes or actors at once (default: one per CPU or GPU)",
    )
    add_address_option(added)


CORPUS_HELP = (
    "a file (.parquet, .jsonl, .json, .csv, .txt), a folder of files of one kind, or a"
    " synthetic dataset: domain, people"
)

UNIT_HELP = (
    "what a document of a .txt file is: line, paragraph, file (default: line; file in a folder)"
)

ENGINE_HELP = (
    "local: this machine's processes; ray: Ray Data; auto: ray above 256 MiB of files (default:"
    " auto)"
)


def add_books_command(commands: Any) -> None:
    """`books BOOKS`."""
    added = add_command(
        commands,
        "books",
        books,
        "cut books into a corpus of passages: one book to forget, others to keep, continuations"
        " to ask",
    )
    added.add_argument(
        "source",
        metavar="BOOKS",
        type=Path,
        help="a data file with the columns title and text, or a folder of .txt files",
    )
    added.add_argument("--forget", metavar="TITLE", required=True, help="the book to forget")
    added.add_argument(
        "--retain", metavar="TITLE", nargs="+", required=True, help="the books to keep"
    )
    added.add_argument(
        "--untouched", metavar="TITLE", nargs="+", default=[], help="books that are only asked"
    )
    for name, dest, text in (
        ("--passages", "n_forget", "passages of the forgotten book (default: 120)"),
        ("--near", "n_near", "other passages of it that are only asked (default: 0)"),
        ("--retain-passages", "n_retain", "passages of each kept book (default: 30)"),
        ("--words", "n_words", "words of a passage (default: 48)"),
        ("--seed", "seed", "which passages are drawn (default: 0)"),
    ):
        added.add_argument(
            name, dest=dest, metavar="N", type=int, default=argparse.SUPPRESS, help=text
        )
    added.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("runs/books"),
        help="(default: runs/books)",
    )


def keywords(chosen: argparse.Namespace) -> int:
    """Keywords to Parquet, and those of the first documents on the screen."""
    from rayunlearn.cluster.corpus_engine import engines, reporting
    from rayunlearn.corpus.extract_keywords import KeywordRequest, extract_corpus_keywords

    output_folder(chosen.output.parent)
    names = (
        "corpus",
        "extractor",
        "output",
        "retain",
        "columns",
        "base",
        "gold",
        "judge",
        "chunk_words",
        "unit",
        "top",
    )
    request = KeywordRequest(
        **{name: getattr(chosen, name) for name in names},
        options=parse_assignments(chosen.assignments),
    )
    with (
        engines(chosen.engine, chosen.workers, chosen.address) as choose,
        reporting(console_for_output()) as report,
    ):
        done = extract_corpus_keywords(request, choose=choose, report=report, show=chosen.show)
    for doc_id, first_keywords in done.first:
        words = ", ".join(f"{text} ({value:.2f})" for text, value in first_keywords[:10])
        print(f"{doc_id}  {words or '(none)'}")
    rejected = f", {done.n_rejected} rejected" if done.n_rejected else ""
    print(f"{done.n_keywords} keywords of {done.n_documents} documents{rejected}: {chosen.output}")
    return DONE


def score_documents(chosen: argparse.Namespace) -> int:
    """Scores to Parquet, and their ranges on the screen."""
    from rayunlearn.cluster.corpus_engine import engines, reporting
    from rayunlearn.corpus.score_documents import ScoreRequest, score_corpus

    output_folder(chosen.output.parent)
    names = ("corpus", "base", "output", "columns", "chunk_words", "unit", "template", "max_tokens")
    scores = tuple(filter(None, chosen.scores.split(",")))
    request = ScoreRequest(
        **{name: getattr(chosen, name) for name in names},
        scores=scores,
        options=parse_assignments(chosen.assignments),
    )
    with (
        engines(chosen.engine, chosen.workers, chosen.address) as choose,
        reporting(console_for_output()) as report,
    ):
        done = score_corpus(request, choose=choose, report=report)
    for name, (mean, low, high) in done.ranges.items():
        print(f"{name}: mean {mean:.4g}, {low:.4g} to {high:.4g}")
    rejected = f", {done.n_rejected} rejected" if done.n_rejected else ""
    print(f"{len(done.ranges)} scores of {done.n_documents} documents{rejected}: {chosen.output}")
    return DONE


def books(chosen: argparse.Namespace) -> int:
    """A corpus of passages, for data.path."""
    from rayunlearn.data.books import BookSplit, cut_books

    sizes = {
        name: value
        for name, value in vars(chosen).items()
        if name in ("n_forget", "n_near", "n_retain", "n_words", "seed")
    }
    output_folder(chosen.output)
    rows = cut_books(
        chosen.source,
        BookSplit(
            forget=chosen.forget,
            retain=tuple(chosen.retain),
            untouched=tuple(chosen.untouched),
            **sizes,
        ),
        chosen.output,
    )
    print(f"{', '.join(f'{count} {name}' for name, count in rows.items())}: {chosen.output}")
    probes = "data.probe_forget=probe_forget data.probe_retain=probe_retain"
    sets = ",".join(f"{name}={name}" for name in ("near", "untouched") if name in rows)
    probes += f" data.probes={sets}" if sets else ""
    print(
        f"use it with --set data.name=files data.path={chosen.output} data.template={{prompt}}"
        f" {probes}"
    )
    return DONE
