"""Keywords of a corpus to Parquet: the work behind `rayunlearn keywords`. No Ray in here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import polars as pl

from rayunlearn import corpus as corpus_code
from rayunlearn import data as data_code
from rayunlearn import keywords as keyword_code
from rayunlearn import models as model_code
from rayunlearn.config import SYNTHETIC_DATASETS, Value, digest
from rayunlearn.corpus.engine import Engine, PartitionResult, ProcessPartition, WorkerFactory
from rayunlearn.corpus.job import (
    WORK_FORMAT,
    OnProgress,
    run_corpus_job,
    work_folder,
)
from rayunlearn.corpus.partitions import MODEL_PARTITION_BYTES, PARTITION_BYTES
from rayunlearn.corpus.publish import check_output, publish_job
from rayunlearn.corpus.request import CorpusJob, CorpusRequest, EngineChoice, local_engine
from rayunlearn.corpus.source import CorpusSource
from rayunlearn.corpus.survey import Survey, first_occurrences, survey_corpus, surviving_documents
from rayunlearn.corpus.vectorized_keywords import BlockJob, block_worker
from rayunlearn.errors import UserError, require, unknown_name
from rayunlearn.keywords.extract import (
    INPUTS_WITH_GOLD,
    INPUTS_WITH_MODEL,
    WHOLE_CORPUS,
    KeywordInputs,
    ModelWithTokenizer,
    extract,
)
from rayunlearn.keywords.rows import keyword_rows
from rayunlearn.keywords.table import EXTRACTORS
from rayunlearn.keywords.vectorized import VECTORIZED
from rayunlearn.models.chat import Chat, load_chat
from rayunlearn.models.folder import check_model
from rayunlearn.models.load import load_model, model_digest
from rayunlearn.ranges import checked_arguments
from rayunlearn.storage.code_identity import code_digest, library_versions
from rayunlearn.storage.parquet import frame_of, write_frame, write_table
from rayunlearn.train.device import accelerator

# the code that decides keywords: a package stands for all its modules
COUNTING_PARTS = (corpus_code, data_code, keyword_code)
EXTRACTING_PARTS = (*COUNTING_PARTS, model_code)


@dataclass(frozen=True, kw_only=True)
class KeywordRequest(CorpusRequest):
    """What `rayunlearn keywords` was asked for. `retain` is a source too; the models are
    directories or Hub names ('' has none); `top` is the most keywords of a document that are
    written (0: all).
    """

    extractor: str
    retain: str = ""
    base: str = ""
    gold: str = ""
    judge: str = ""
    top: int = 0

    @property
    def with_model(self) -> bool:
        """Whether a model is run."""
        return bool(self.base or self.judge)

    def side(self, name: str, side: str) -> CorpusSource:
        """`source`, in partitions that a model, or none, reads in some seconds."""
        piece_bytes = MODEL_PARTITION_BYTES if self.with_model else PARTITION_BYTES
        return self.source(name, side=side, piece_bytes=piece_bytes)

    @property
    def retain_source(self) -> CorpusSource | None:
        """What the keywords are compared with: a synthetic dataset brings its own."""
        name = self.retain or (self.corpus if self.corpus in SYNTHETIC_DATASETS else "")
        return self.side(name, "retain") if name else None


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
class KeywordJob(CorpusJob[KeywordRequest]):
    """What a worker needs. `partitions`: those that are worked on together and written to one
    file.
    """

    retain: Survey | None
    partitions: tuple[tuple[int, ...], ...]


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
    _check_needs(request, EXTRACTORS[request.extractor].inputs)
    source, retain = request.side(request.corpus, "forget"), request.retain_source
    engine = choose([source, *([retain] if retain else [])], request.with_model)
    job = _surveyed_job(request, source, retain, arguments, engine, report)
    pieces = range(len(job.partitions))
    notes = run_corpus_job("keywords", job.folder / "done", _worker_of(job), pieces, engine, report)
    first = _first(job, show)
    n_rejected = publish_job(job.folder, job.survey, pieces, request.output, "keywords")
    return KeywordSummary(
        job.survey.n_documents, sum(note.counts["keywords"] for note in notes), n_rejected, first
    )


def _surveyed_job(
    request: KeywordRequest,
    source: CorpusSource,
    retain: CorpusSource | None,
    arguments: Mapping[str, Any],
    engine: Engine,
    report: OnProgress,
) -> KeywordJob:
    """The job, with its corpora counted. What takes a whole corpus is one partition."""
    folder = work_folder(request.output, _key(request, source, retain, arguments))
    partitions = range(len(source.pieces))
    together = set(EXTRACTORS[request.extractor].inputs) & set(WHOLE_CORPUS)
    return KeywordJob(
        request=request,
        arguments=arguments,
        survey=survey_corpus("corpus", source, folder / "corpus", engine, report),
        retain=survey_corpus("retain", retain, folder / "retain", engine, report)
        if retain
        else None,
        partitions=(tuple(partitions),)
        if together
        else tuple((partition,) for partition in partitions),
        folder=folder,
    )


def _worker_of(job: KeywordJob) -> WorkerFactory:
    """The worker that needs the least: that of the vectorized extractors loads no torch."""
    request = job.request
    if request.extractor not in VECTORIZED:
        return partial(_worker, job)
    block_job = BlockJob(
        extractor=request.extractor,
        arguments=job.arguments,
        top=request.top,
        survey=job.survey,
        retain=job.retain,
        folder=job.folder,
    )
    return partial(block_worker, block_job)


def _check_needs(request: KeywordRequest, inputs_needed: Sequence[str]) -> None:
    """Raise UserError for what the extractor asks for and the request does not give."""
    if "retain_statistics" in inputs_needed and not (
        request.retain or request.corpus in SYNTHETIC_DATASETS
    ):
        raise UserError(
            f"extractor {request.extractor!r} compares with a retain corpus, which must have a"
            " document: give --retain"
        )
    if set(inputs_needed) & set(INPUTS_WITH_MODEL) and not request.base:
        raise UserError(f"extractor {request.extractor!r} needs a base model: give --base")
    if set(inputs_needed) & set(INPUTS_WITH_GOLD) and not request.gold:
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
    """What identifies the work: other input, settings or code is other work."""
    named = {"--base": request.base, "--gold": request.gold, "--judge": request.judge}
    for option, name in named.items():
        if name:
            check_model(name, setting=option)
    asks_models = any(named.values())
    models = [model_digest(name) if name else "" for name in named.values()]
    return digest(
        [
            WORK_FORMAT,
            source.key,
            retain.key if retain else None,
            request.extractor,
            dict(arguments),
            models,
            request.top,
            code_digest(*(EXTRACTING_PARTS if asks_models else COUNTING_PARTS)),
            library_versions() if asks_models else {},
        ]
    )


def _worker(job: KeywordJob) -> ProcessPartition:
    """Extracts the keywords of one partition at a time; what it knows of the corpus and its models
    are read once.
    """
    request = job.request
    models = {name: _model_loader(name) for name in (request.base, request.gold) if name}
    inputs_of = partial(
        KeywordInputs,
        arguments=job.arguments,
        base=models.get(request.base),
        gold=models.get(request.gold),
        chat=_chat_loader(request.judge) if request.judge else None,
        statistics=job.survey.statistics(),
        retain_statistics=job.retain.statistics() if job.retain else None,
    )

    def do(partition: int) -> PartitionResult:
        documents = [
            d for piece in job.partitions[partition] for d in surviving_documents(job.survey, piece)
        ]
        return _extract_partition(job, partition, inputs_of(documents))

    return do


def _extract_partition(job: KeywordJob, partition: int, inputs: KeywordInputs) -> PartitionResult:
    """Write the keywords of one partition, and what the extractor rejected."""
    frame, n_keywords = _rows(job, inputs)
    files = [f"parts/{partition:06}.parquet"]
    write_frame(job.folder / files[0], frame)
    if inputs.rejected:
        files.append(f"aside/{partition:06}.parquet")
        write_table(job.folder / files[1], "quarantine", [asdict(r) for r in inputs.rejected])
    return PartitionResult(
        piece=partition,
        n_documents=len(inputs.documents),
        files=files,
        n_rejected=len(inputs.rejected),
        counts={"keywords": n_keywords},
    )


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
    function = EXTRACTORS[extractor].function
    return checked_arguments([function], options, kind=f"option of {extractor}")[0]


def _model_loader(name: str) -> Callable[[], ModelWithTokenizer]:
    return cache(lambda: ModelWithTokenizer(*load_model(name, device=str(accelerator().device))))


def _chat_loader(name: str) -> Callable[[], Chat]:
    return cache(lambda: load_chat(name, str(accelerator().device)))
