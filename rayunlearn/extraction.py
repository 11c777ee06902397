"""Keywords of a corpus file to Parquet: the work behind `rayunlearn keywords`. No Ray in here."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rayunlearn.config import BEDS, Data, Value, coerce, digest
from rayunlearn.coreset import keyword_rows
from rayunlearn.data.documents import Document, Rejected
from rayunlearn.data.files import choose_columns, parse_columns, read_file, to_documents
from rayunlearn.data.testbed import generate
from rayunlearn.errors import require, unknown_name
from rayunlearn.families import options_of
from rayunlearn.keywords.corpus import Known, Lender, extract
from rayunlearn.keywords.extractors import EXTRACTORS
from rayunlearn.keywords.judge import chat_with
from rayunlearn.keywords.phrases import Keyword
from rayunlearn.models.load import load_model
from rayunlearn.results.store import write_table


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `rayunlearn keywords` was asked for. `corpus` and `retain` are a data file or a test bed's name; the models are
    directories or Hub names ('' has none)."""

    corpus: str
    extractor: str
    output: Path
    retain: str = ""
    columns: str = ""
    base: str = ""
    gold: str = ""
    judge: str = ""
    options: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Extracted:
    """What came of it: the documents with their keywords, and what was set aside."""

    documents: tuple[Document, ...]
    keywords: tuple[tuple[Keyword, ...], ...]
    rejected: tuple[Rejected, ...]


def extract_to(request: Request) -> Extracted:
    """Write `request.output` (table keywords) and, if anything was set aside, `<stem>.quarantine.parquet` beside it.

    Raises UserError for an unknown extractor or option, a file that cannot be read, and a model that is needed and missing.
    """
    arguments = arguments_for(request.extractor, request.options)
    require(request.output.suffix == ".parquet", "--output must end in .parquet", str(request.output))
    documents, rejected = documents_of(request.corpus, "forget", request.columns)
    retain = _retain_of(request)
    known = Known(
        documents,
        retain,
        arguments=arguments,
        base=_lender(request.base),
        gold=_lender(request.gold),
        chat=(lambda: chat_with(*load_model(request.judge))) if request.judge else None,
    )
    found = extract(request.extractor, known, arguments)
    aside = (*rejected, *known.rejected)
    request.output.parent.mkdir(parents=True, exist_ok=True)
    ids = [d.doc_id for d in documents]
    write_table(request.output, "keywords", keyword_rows(digest(ids), request.extractor, ids, found))
    if aside:
        write_table(request.output.with_suffix(".quarantine.parquet"), "quarantine", [asdict(r) for r in aside])
    return Extracted(documents, tuple(map(tuple, found)), aside)


def arguments_for(extractor: str, options: Mapping[str, Value]) -> dict[str, Any]:
    """The extractor's arguments: its defaults and what `options` (`tfidf.earliness`) changes. Raises UserError as a trial would."""
    if extractor not in EXTRACTORS:
        raise unknown_name("extractor", extractor, EXTRACTORS)
    known = {option.name: option for option in options_of(EXTRACTORS[extractor].function)}
    for name in options:
        if name not in known:
            raise unknown_name(f"option of {extractor}", name, known)
    values = {name: coerce(name, options.get(name, option.default), option.kind) for name, option in known.items()}
    for name, option in known.items():
        if option.rule is not None:
            require(option.rule.holds(float(values[name])), f"{name} {option.rule.words}", values[name])
    return {name.partition(".")[2]: value for name, value in values.items()}


def documents_of(source: str, side: str, columns: str = "") -> tuple[tuple[Document, ...], tuple[Rejected, ...]]:
    """The documents of a data file, or one side (forget, retain) of a test bed; and what was set aside. Raises UserError for none."""
    if source in BEDS:
        corpus = generate(Data(name=source))
        return (corpus.forget if side == "forget" else corpus.retain), ()
    file = Path(source).expanduser()
    require(file.is_file(), f"a corpus must be a data file or one of {', '.join(BEDS)}", source)
    rows = tuple(read_file(file))
    loaded = to_documents(rows, choose_columns(rows, parse_columns(columns), file.stem))
    require(bool(loaded.documents), f"a corpus must have a usable document; {len(loaded.rejected)} rows set aside in", source)
    return loaded.documents, loaded.rejected


def _retain_of(request: Request) -> tuple[Document, ...]:
    source = request.retain or (request.corpus if request.corpus in BEDS else "")
    return documents_of(source, "retain", request.columns)[0] if source else ()


def _lender(name: str) -> Callable[[], Lender] | None:
    return (lambda: Lender(*load_model(name))) if name else None
