"""Scores of a corpus by a model to Parquet: the work behind `rayunlearn score`. No Ray in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn import corpus as corpus_code
from rayunlearn import data as data_code
from rayunlearn import models as model_code
from rayunlearn import selectors as selector_code
from rayunlearn.config import Data, Value, digest
from rayunlearn.corpus.engine import PartitionResult, ProcessPartition
from rayunlearn.corpus.job import (
    WORK_FORMAT,
    OnProgress,
    run_corpus_job,
    work_folder,
)
from rayunlearn.corpus.partitions import MODEL_PARTITION_BYTES
from rayunlearn.corpus.publish import check_output, publish_job, whole_files
from rayunlearn.corpus.request import CorpusJob, CorpusRequest, EngineChoice, local_engine
from rayunlearn.corpus.source import CorpusSource
from rayunlearn.corpus.survey import survey_corpus, surviving_documents
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import ENCODING_VERSION, encode_documents
from rayunlearn.errors import require, unknown_name
from rayunlearn.lazy import torch
from rayunlearn.models.document_features import DocumentFeatures, document_features, zlib_ratio
from rayunlearn.models.folder import check_model
from rayunlearn.models.load import load_model, model_digest
from rayunlearn.ranges import checked_arguments
from rayunlearn.schema import SCORES_VERSION
from rayunlearn.selectors.table import SELECTORS
from rayunlearn.storage.code_identity import code_digest, library_versions
from rayunlearn.storage.parquet import frame_of, write_frame
from rayunlearn.train.device import accelerator

# the code that decides scores: a package stands for all its modules
SCORING_PARTS = (corpus_code, data_code, model_code, selector_code)

# sorted by length and padded together; their hidden states are held until they are scored
DOCUMENTS_PER_PASS = 1024

# What a selector's score of one document may ask for, of the document's own pass and text.
SCORE_COLUMNS: dict[str, Callable[[Sequence[DocumentFeatures], Sequence[str]], Any]] = {
    "token_nll": lambda passed, _: [p.token_nll for p in passed],
    "answer_nll": lambda passed, _: [p.without_end(p.token_nll) for p in passed],
    "answer_surprise": lambda passed, _: [p.without_end(p.surprise) for p in passed],
    "token_error": lambda passed, _: [p.token_error for p in passed],
    "nll_per_byte": lambda passed, texts: torch.tensor(
        [zlib_ratio(p, text) for p, text in zip(passed, texts, strict=True)]
    ),
}

SCORERS = tuple(name for name, row in SELECTORS.items() if set(row.inputs) <= set(SCORE_COLUMNS))


@dataclass(frozen=True, kw_only=True)
class ScoreRequest(CorpusRequest):
    """What `rayunlearn score` was asked for: a source, a model's directory or Hub name, and
    selectors whose scores come from one forward pass. A document is put to the model as
    `data.template` and `data.max_tokens` say.
    """

    base: str
    scores: Sequence[str]
    template: str = Data.template
    max_tokens: int = Data.max_tokens


@dataclass(frozen=True)
class ScoreSummary:
    """What came of it: numbers, and mean, lowest and highest score by scorer."""

    n_documents: int
    n_rejected: int
    ranges: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True)
class ScoreJob(CorpusJob[ScoreRequest]):
    """What a worker needs. `arguments`: those of every scorer, by its name."""

    model_digest: str


def score_corpus(
    request: ScoreRequest,
    *,
    choose: EngineChoice = local_engine,
    report: OnProgress = lambda _: None,
) -> ScoreSummary:
    """Write `request.output` (table scores) and, if anything was rejected,
    `<stem>.quarantine.parquet`; resumed as `extract_corpus_keywords`.

    Raises UserError for an unknown score or option, a source that cannot be read and a model that
    cannot be loaded.
    """
    arguments = scorer_arguments(request.scores, request.options)
    check_output(request.output)
    # their rules
    Data(template=request.template, max_tokens=request.max_tokens)
    check_model(
        request.base, setting="--base", template=request.template, max_tokens=request.max_tokens
    )
    source = request.source(request.corpus, piece_bytes=MODEL_PARTITION_BYTES)
    model = model_digest(request.base)
    engine = choose([source], True)
    folder = work_folder(request.output, _key(request, source, model, arguments))
    job = ScoreJob(
        request=request,
        arguments=arguments,
        survey=survey_corpus("corpus", source, folder / "corpus", engine, report),
        model_digest=model,
        folder=folder,
    )
    pieces = range(len(source.pieces))
    run_corpus_job("scoring", folder / "done", partial(_worker, job), pieces, engine, report)
    ranges = _ranges(whole_files(folder / "done", pieces))
    n_rejected = publish_job(folder, job.survey, pieces, request.output, "scores")
    return ScoreSummary(job.survey.n_documents, n_rejected, ranges)


def _key(
    request: ScoreRequest,
    source: CorpusSource,
    model: str,
    arguments: Mapping[str, Mapping[str, Any]],
) -> str:
    """What identifies the work: other input, settings, model or code is other work."""
    return digest(
        [
            WORK_FORMAT,
            SCORES_VERSION,
            source.key,
            model,
            {name: dict(a) for name, a in arguments.items()},
            request.template,
            request.max_tokens,
            ENCODING_VERSION,
            code_digest(*SCORING_PARTS),
            library_versions(),
        ]
    )


def scorer_arguments(
    names: Sequence[str], options: Mapping[str, Value]
) -> dict[str, dict[str, Any]]:
    """The arguments of every named score: defaults and what `options` (`min_k.fraction`) changes.
    Raises UserError as a trial would.
    """
    require(bool(names), f"--scores must name one or more of {', '.join(SCORERS)}", list(names))
    for name in names:
        if name not in SCORERS:
            raise unknown_name("score", name, SCORERS)
    functions = [SELECTORS[name].function for name in names]
    arguments = checked_arguments(functions, options, kind=f"option of {', '.join(names)}")
    return dict(zip(names, arguments, strict=True))


def _worker(job: ScoreJob) -> ProcessPartition:
    """Scores one piece at a time; the model is loaded once."""
    request = job.request
    model, tokenizer = load_model(
        request.base, dtype=torch.float32, device=str(accelerator().device)
    )

    def do(partition: int) -> PartitionResult:
        documents = surviving_documents(job.survey, partition)
        frames = [frame_of("scores", [])]
        for begin in range(0, len(documents), DOCUMENTS_PER_PASS):
            chunk = documents[begin : begin + DOCUMENTS_PER_PASS]
            sequences = encode_documents(chunk, tokenizer, request.template, request.max_tokens)
            frames += _frames(job, chunk, document_features(model, sequences))
        part = f"parts/{partition:06}.parquet"
        write_frame(job.folder / part, pl.concat(frames))
        return PartitionResult(piece=partition, n_documents=len(documents), files=[part])

    return do


def _frames(
    job: ScoreJob, documents: Sequence[Document], passed: Sequence[DocumentFeatures]
) -> list[pl.DataFrame]:
    """Rows of the table scores, a frame per scorer."""
    texts = [d.answer for d in documents]
    fixed = {"corpus_digest": job.survey.digest, "model_digest": job.model_digest}
    frames = []
    for name, arguments in job.arguments.items():
        row = SELECTORS[name]
        inputs = {column: SCORE_COLUMNS[column](passed, texts) for column in row.inputs}
        values = row.function(**inputs, **arguments)
        rows = [
            fixed | {"doc_id": d.doc_id, "scorer": name, "value": value}
            for d, value in zip(documents, values.tolist(), strict=True)
        ]
        frames.append(frame_of("scores", rows))
    return frames


def _ranges(parts: Sequence[Path]) -> dict[str, tuple[float, float, float]]:
    """Mean, lowest and highest value by scorer."""
    value = pl.col("value")
    table = (
        pl.scan_parquet(list(parts), glob=False)
        .group_by("scorer")
        .agg(mean=value.mean(), low=value.min(), high=value.max())
        .sort("scorer")
    )
    return {
        name: (mean, low, high)
        for name, mean, low, high in table.collect(engine="streaming").iter_rows()
    }
