"""Books cut into a corpus of passages: one book to forget, others to keep, and the second half of a
passage as its question.

A passage is a run of words of one book with single blanks between them; nothing else of the text is
changed. A prose corpus has no questions, so what is asked is memory: the prompt is a passage's
first half, the answer its second.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rayunlearn.data.documents import Document
from rayunlearn.data.readers import ENDINGS, data_ending, read_file
from rayunlearn.errors import UserError, require, unknown_name

BOOKS_MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class BookSplit:
    """What is cut: titles, and how many passages of `n_words` words of the forgotten book and of
    each kept one. `n_near` other passages of the forgotten book, and `n_retain` of each book of
    `untouched`, are asked and never trained on.

    They are drawn at random with `seed` and do not overlap. `n_words` is even, so both halves are
    of one length.
    """

    forget: str
    retain: tuple[str, ...]
    untouched: tuple[str, ...] = ()
    n_forget: int = 120
    n_near: int = 0
    n_retain: int = 30
    n_words: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            bool(self.retain),
            "a books corpus must keep at least one book, --retain names",
            len(self.retain),
        )
        titles = (self.forget, *self.retain, *self.untouched)
        require(
            len(set(titles)) == len(titles),
            "a book must be named once in --forget, --retain and --untouched",
            titles,
        )
        require(self.n_forget >= 2, "--passages must be >= 2", self.n_forget)
        require(self.n_near >= 0, "--near must be >= 0", self.n_near)
        require(self.n_retain >= 1, "--retain-passages must be >= 1", self.n_retain)
        require(
            self.n_words >= 4 and self.n_words % 2 == 0,
            "--words must be even and >= 4",
            self.n_words,
        )


def cut_books(source: Path, split: BookSplit, output: Path) -> dict[str, int]:
    """Write forget, retain, probe_forget and probe_retain as JSONL, near and untouched where they
    are asked for, and manifest.json, to `output`; returns rows by split.

    `source` is a data file with the columns title and text, or a folder of .txt files whose names
    are the titles. The manifest names every source by its SHA-256, with the settings. Raises
    UserError for a title that is not there or stands for two books, and for a book with too few
    words.
    """
    texts = read_books(source, (split.forget, *split.retain, *split.untouched))
    book = passages_of(split.forget, texts[split.forget], split.n_forget + split.n_near, split)
    forget, near = _shared_out(book, split)
    retain, untouched = (
        [p for title in titles for p in passages_of(title, texts[title], split.n_retain, split)]
        for titles in (split.retain, split.untouched)
    )
    more = {"near": [halves(p) for p in near], "untouched": [halves(p) for p in untouched]}
    splits = {
        "forget": forget,
        "retain": retain,
        "probe_forget": [halves(p) for p in forget],
        "probe_retain": [halves(p) for p in retain],
    } | {name: documents for name, documents in more.items() if documents}
    output.mkdir(parents=True, exist_ok=True)
    for name, documents in splits.items():
        lines = [json.dumps(_row(document), ensure_ascii=False) for document in documents]
        (output / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = {name: len(documents) for name, documents in splits.items()}
    digests = {title: hashlib.sha256(text.encode()).hexdigest() for title, text in texts.items()}
    manifest = {"source": source.name, "sha256": digests, "settings": asdict(split), "rows": rows}
    (output / BOOKS_MANIFEST).write_text(
        json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return rows


def read_books(source: Path, titles: Sequence[str]) -> dict[str, str]:
    """Title -> text of the books named, from a data file or a folder of .txt files."""
    books = _from_folder(source) if source.is_dir() else _from_file(source)
    counts = Counter(title for title, _ in books)
    for title in titles:
        if title not in counts:
            raise unknown_name(f"book in {source.name}:", title, counts)
        require(
            counts[title] == 1,
            f"a title must stand for one book of {source.name}, {title!r} stands for",
            counts[title],
        )
    return {title: text for title, text in books if title in titles}


def passages_of(title: str, text: str, n: int, split: BookSplit) -> list[Document]:
    """`n` passages of `cut.n_words` words in the order of the book, drawn from all that it can be
    cut into.
    """
    words = text.split()
    starts = range(0, len(words) - split.n_words + 1, split.n_words)
    runs = list(dict.fromkeys(" ".join(words[start : start + split.n_words]) for start in starts))
    require(
        len(runs) >= n,
        f"a book must have {n} different passages of {split.n_words} words, {title!r} has",
        len(runs),
    )
    chosen = sorted(random.Random(f"books {split.seed} {title}").sample(range(len(runs)), n))
    return [Document(answer=runs[start], topic=title) for start in chosen]


def _shared_out(
    passages: list[Document], split: BookSplit
) -> tuple[list[Document], list[Document]]:
    """Passages to forget and the near ones, both from all over the book."""
    order = range(len(passages))
    near = {*random.Random(f"near {split.seed} {split.forget}").sample(order, split.n_near)}
    return [passages[i] for i in order if i not in near], [passages[i] for i in sorted(near)]


def halves(passage: Document) -> Document:
    """The passage as a question: its first half of words asks for its second."""
    words = passage.answer.split()
    middle = len(words) // 2
    return Document(
        prompt=" ".join(words[:middle]), answer=" ".join(words[middle:]), topic=passage.topic
    )


def _row(document: Document) -> dict[str, str]:
    prompt = {"prompt": document.prompt} if document.prompt else {}
    return prompt | {"answer": document.answer, "topic": document.topic}


def _from_folder(folder: Path) -> list[tuple[str, str]]:
    files = sorted(folder.glob("*.txt"))
    require(bool(files), "a folder of books must hold .txt files, found in it", len(files))
    return [(file.stem, file.read_text(encoding="utf-8")) for file in files]


def _from_file(file: Path) -> list[tuple[str, str]]:
    require(
        file.is_file() and bool(data_ending(file)),
        f"books must be a folder of .txt files or a file ending in one of {', '.join(ENDINGS)}",
        str(file),
    )
    rows = [row.values for row in read_file(file) if not row.reason]
    if not rows or not {"title", "text"} <= rows[0].keys():
        raise UserError(
            f"a books file must have the columns title and text, {file.name} has"
            f" {', '.join(rows[0]) if rows else 'no row'}"
        )
    return [(str(row["title"]), str(row["text"])) for row in rows]
