"""Keywords of a corpus to Parquet: the work behind `rayunlearn keywords`. No Ray in here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn.config import SYNTHETIC_DATASETS, Value, coerce_value, digest
from rayunlearn.corpus.engine import Engine, PartitionResult, ProcessPartition, run_in_sequence
from rayunlearn.corpus.job import (
    FORMAT,
    OnProgress,
    check_output,
    delete_work_folder,
    publish,
    publish_rejected,
    run_corpus_job,
    work_folder,
)
from rayunlearn.corpus.partitions import MODEL_PARTITION_BYTES, PARTITION_BYTES
from rayunlearn.corpus.source import CorpusSource, corpus_source
from rayunlearn.corpus.survey import Survey, first_occurrences, survey_corpus, surviving_documents
from rayunlearn.corpus.vectorized_keywords import BlockJob, block_worker
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.keywords.extract import WHOLE_CORPUS, KeywordInputs, ModelWithTokenizer, extract
from rayunlearn.keywords.llm_judge import chat_with
from rayunlearn.keywords.rows import keyword_rows
from rayunlearn.keywords.table import EXTRACTORS
from rayunlearn.keywords.vectorized import VECTORIZED
from rayunlearn.models.load import load_model, model_digest
from rayunlearn.ranges import options_of, required_inputs
from rayunlearn.storage.parquet import frame_of, write_frame, write_table
from rayunlearn.train.device import accelerator

EXTRACTORS_WITH_MODEL = (
    "phrase_states",
    "page_state",
    "word_gap",
    "corpus_gap",
    "word_gradient_gap",
    "corpus_gradient_gap",
)


@dataclass(frozen=True, kw_only=True)
class KeywordRequest:
    """What `rayunlearn keywords` was asked for. `corpus` and `retain` are sources
    (`corpus.partitions`); the models are directories or Hub names ('' has none); `top` is the most
    keywords of a document that are written (0: all); `piece_bytes` 0 leaves the size of pieces to
    what reads them."""

    corpus: str
    extractor: str
    output: Path
    retain: str = ""
    columns: str = ""
    base: str = ""
    gold: str = ""
    judge: str = ""
    chunk_words: int = 0
    unit: str = ""
    top: int = 0
    piece_bytes: int = 0
    options: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class KeywordSummary:
    """What came of it: numbers, and the keywords (text, score) of the first documents,
    best first.
    """

    n_documents: int
    n_keywords: int
    n_rejected: int
    first: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]


@dataclass(frozen=True, kw_only=True)
class KeywordJob:
    """What a worker needs. `partitions`: the pieces that are worked on together and written to one
    file.
    """

    request: KeywordRequest
    arguments: Mapping[str, Any]
    survey: Survey
    retain: Survey | None
    partitions: tuple[tuple[int, ...], ...]
    folder: Path


# by the sources' size, and whether a model is run
EngineChoice = Callable[[Sequence[CorpusSource], bool], Engine]


def local_engine(_sources: Sequence[CorpusSource], _with_model: bool) -> Engine:
    """The engine of a caller that has no wish."""
    return run_in_sequence


def extract_corpus_keywords(
    request: KeywordRequest,
    *,
    choose: EngineChoice = local_engine,
    report: OnProgress = lambda _: None,
    show: int = 0,
) -> KeywordSummary:
    """Write `request.output` (table keywords) and, if anything was rejected,
    `<stem>.quarantine.parquet` beside it.

    What a call that was ended had done is in `<stem>.work` beside the output and is not done again;
    the folder goes when the output appears. Raises UserError for an unknown extractor or option, a
    source that cannot be read, and a model or corpus that is needed and missing, before anything is
    read.
    """
    arguments = extractor_arguments(request.extractor, request.options)
    check_output(request.output)
    inputs_needed = required_inputs(EXTRACTORS[request.extractor].function)
    _check_needs(request, inputs_needed)
    source, retain = _source(request, request.corpus, "forget"), _retain_of(request)
    together = bool(set(inputs_needed) & set(WHOLE_CORPUS))
    engine = choose([source, *([retain] if retain else [])], _with_model(request))
    folder = work_folder(request.output, _key(request, source, retain, arguments))
    survey = survey_corpus("corpus", source, folder / "corpus", engine, report)
    n = len(source.pieces)
    job = KeywordJob(
        request=request,
        arguments=arguments,
        survey=survey,
        retain=survey_corpus("retain", retain, folder / "retain", engine, report)
        if retain
        else None,
        partitions=(tuple(range(n)),)
        if together
        else tuple((partition,) for partition in range(n)),
        folder=folder,
    )
    worker = (
        partial(block_worker, _block_job(job))
        if request.extractor in VECTORIZED
        else partial(_worker, job)
    )
    notes = run_corpus_job(
        "keywords", folder / "done", worker, range(len(job.partitions)), engine, report
    )
    first = _first(job, show)
    publish(folder / "parts", request.output, "keywords")
    n_rejected = publish_rejected([folder / "corpus", folder], request.output)
    delete_work_folder(folder)
    return KeywordSummary(
        survey.n_documents, sum(note.counts["keywords"] for note in notes), n_rejected, first
    )


def _check_needs(request: KeywordRequest, inputs_needed: Sequence[str]) -> None:
    """Raise UserError for what the extractor asks for and the request does not give."""
    if "retain_statistics" in inputs_needed and not (
        request.retain or request.corpus in SYNTHETIC_DATASETS
    ):
        raise UserError(
            f"extractor {request.extractor!r} compares with a retain corpus, which must have a"
            " document: give --retain"
        )
    if set(inputs_needed) & set(EXTRACTORS_WITH_MODEL) and not request.base:
        raise UserError(f"extractor {request.extractor!r} needs a base model: give --base")
    if {"word_gap", "word_gradient_gap"} & set(inputs_needed) and not request.gold:
        raise UserError(
            f"extractor {request.extractor!r} needs a model that never saw the forget set: give"
            " --gold"
        )
    if "judged" in inputs_needed and not request.judge:
        raise UserError(
            f"extractor {request.extractor!r} needs a chat model: give --judge (or"
            " select.judge_model)"
        )
    require(request.top >= 0, "--top must be >= 0", request.top)


def _key(
    request: KeywordRequest,
    source: CorpusSource,
    retain: CorpusSource | None,
    arguments: Mapping[str, Any],
) -> str:
    """What identifies the work: another input or setting is other work."""
    models = [
        model_digest(name) if name else "" for name in (request.base, request.gold, request.judge)
    ]
    return digest(
        [
            FORMAT,
            source.key,
            retain.key if retain else None,
            request.extractor,
            dict(arguments),
            models,
            request.top,
        ]
    )


def _block_job(job: KeywordJob) -> BlockJob:
    request = job.request
    return BlockJob(
        extractor=request.extractor,
        arguments=job.arguments,
        top=request.top,
        survey=job.survey,
        retain=job.retain,
        folder=job.folder,
    )


def _worker(job: KeywordJob) -> ProcessPartition:
    """Extracts the keywords of one partition at a time; what it knows of the corpus and its models
    are read once.
    """
    request = job.request
    statistics = job.survey.statistics()
    retain_statistics = job.retain.statistics() if job.retain else None
    lenders = {name: _lender(name) for name in (request.base, request.gold) if name}
    chat = (
        cache(lambda: chat_with(*load_model(request.judge, device=str(accelerator().device))))
        if request.judge
        else None
    )

    def do(partition: int) -> PartitionResult:
        documents = [
            d for piece in job.partitions[partition] for d in surviving_documents(job.survey, piece)
        ]
        inputs = KeywordInputs(
            documents,
            arguments=job.arguments,
            base=lenders.get(request.base),
            gold=lenders.get(request.gold),
            chat=chat,
            statistics=statistics,
            retain_statistics=retain_statistics,
        )
        frame, n_keywords = _rows(job, inputs)
        if inputs.rejected:
            write_table(
                job.folder / f"aside/{partition:06}.parquet",
                "quarantine",
                [asdict(r) for r in inputs.rejected],
            )
        write_frame(job.folder / f"parts/{partition:06}.parquet", frame)
        return PartitionResult(
            piece=partition,
            n_documents=len(documents),
            n_rejected=len(inputs.rejected),
            counts={"keywords": n_keywords},
        )

    return do


def _rows(job: KeywordJob, inputs: KeywordInputs) -> tuple[pl.DataFrame, int]:
    """Rows of the table keywords, and how many keywords they are."""
    name = job.request.extractor
    rows = [
        keywords[: job.request.top or None] for keywords in extract(name, inputs, job.arguments)
    ]
    return frame_of(
        "keywords",
        keyword_rows(job.survey.digest, name, [d.doc_id for d in inputs.documents], rows),
    ), sum(map(len, rows))


def _first(job: KeywordJob, show: int) -> tuple[tuple[str, tuple[tuple[str, float], ...]], ...]:
    """Keywords of the first `show` documents of the first piece."""
    ids = first_occurrences(job.survey, show)
    table = (
        pl.read_parquet(job.folder / "parts/000000.parquet")
        .filter(pl.col("doc_id").is_in(ids))
        .unique(["doc_id", "keyword"], maintain_order=True)
    )
    first_keywords = {
        i: tuple(table.filter(pl.col("doc_id") == i).select("keyword", "score").iter_rows())
        for i in ids
    }
    return tuple(first_keywords.items())


def extractor_arguments(extractor: str, options: Mapping[str, Value]) -> dict[str, Any]:
    """The extractor's arguments: its defaults and what `options` (`tfidf.earliness`) changes.
    Raises UserError as a trial would.
    """
    if extractor not in EXTRACTORS:
        raise unknown_name("extractor", extractor, EXTRACTORS)
    known_options = {option.name: option for option in options_of(EXTRACTORS[extractor].function)}
    for name in options:
        if name not in known_options:
            raise unknown_name(f"option of {extractor}", name, known_options)
    values = {
        name: coerce_value(name, options.get(name, option.default), option.kind)
        for name, option in known_options.items()
    }
    for name, option in known_options.items():
        if option.rule is not None:
            require(
                option.rule.holds(float(values[name])), f"{name} {option.rule.words}", values[name]
            )
    return {name.partition(".")[2]: value for name, value in values.items()}


def _with_model(request: KeywordRequest) -> bool:
    return bool(request.base or request.judge)


def _retain_of(request: KeywordRequest) -> CorpusSource | None:
    name = request.retain or (request.corpus if request.corpus in SYNTHETIC_DATASETS else "")
    return _source(request, name, "retain") if name else None


def _source(request: KeywordRequest, name: str, side: str) -> CorpusSource:
    piece_bytes = request.piece_bytes or (
        MODEL_PARTITION_BYTES if _with_model(request) else PARTITION_BYTES
    )
    return corpus_source(
        name,
        side=side,
        columns=request.columns,
        chunk_words=request.chunk_words,
        unit=request.unit,
        piece_bytes=piece_bytes,
    )


def _lender(name: str) -> Callable[[], ModelWithTokenizer]:
    return cache(lambda: ModelWithTokenizer(*load_model(name, device=str(accelerator().device))))
