"""Text about neither side: read from a file of the user's, or our own everyday scenes."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import chain
from pathlib import Path

from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.readers import read_file
from rayunlearn.data.rows import choose_columns, to_documents
from rayunlearn.data.unrelated_text import unrelated_documents
from rayunlearn.errors import require

# passages of plain English about everyday things, written for this project: no training is shown
# them, and no table of `data.known` has a fact of them
GENERAL_TEXT = Path(__file__).parent / "general_text.txt"


def text_of(file: Path, setting: str = "attack.file") -> tuple[Document, ...]:
    """Documents to train on: paragraphs of a .txt file, else the rows of a data file. Raises
    UserError, which names `setting`, where it holds none.
    """
    if file.suffix.lower() == ".txt":
        parts = [part.strip() for part in file.read_text(encoding="utf-8").split("\n\n")]
        documents = tuple(Document(answer=part) for part in parts if part)
    else:
        rows = tuple(read_file(file))
        documents = to_documents(rows, choose_columns(rows, {}, file.stem)).documents
    require(len(documents) > 0, f"{setting} must hold text to train on", str(file))
    return documents


def general_documents(corpus: Corpus, n: int, file: str, seed: int) -> tuple[Document, ...]:
    """`n` different documents of general text that the corpus does not have: of `file`, drawn by
    the seed, or our own scenes where it is ''.

    What the corpus has as a forget or retain document, as a probe of any split or as what only base
    was trained on is left out: a split that no unlearning was shown stays so. Raises UserError
    where too few are left.
    """
    if not file:
        return unrelated_documents(n, seed)
    probed, extra = corpus.probes.values(), corpus.extra_training.values()
    corpus_ids = {d.doc_id for d in chain(corpus.forget, corpus.retain, *probed, *extra)}
    require(Path(file).is_file(), "retain.file must be a file", file)
    changed = Path(file).stat().st_mtime_ns
    usable = {d.doc_id: d for d in _read_once(file, changed) if d.doc_id not in corpus_ids}
    rule = f"retain.file must hold {n} documents that the corpus does not have"
    require(len(usable) >= n, rule, len(usable))
    return tuple(usable[i] for i in random.Random(f"general {seed}").sample(sorted(usable), n))


@lru_cache(maxsize=4)
def _read_once(file: str, _changed: int) -> tuple[Document, ...]:
    """`text_of` of a file that a plan of thousands of trials asks for as often."""
    return text_of(Path(file), "retain.file")
