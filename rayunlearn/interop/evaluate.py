"""Any model directory on a corpus or benchmark: `examples`, `evals` and `generations` as a trial's
stage has them, without a run.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from rayunlearn.analysis.intervals import summarise_examples
from rayunlearn.config import BENCHMARKS, Data, Model, Trial, Value, flatten, trial_id, with_values
from rayunlearn.data.benchmarks import load_benchmark, parse_options
from rayunlearn.data.documents import Corpus
from rayunlearn.data.known import paraphrases_apart
from rayunlearn.data.load import load_corpus
from rayunlearn.data.probe_sets import with_probe_sets
from rayunlearn.data.tokenize import cut_note
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import torch
from rayunlearn.metrics.corpus import GOLD_METRICS, corpus_rows
from rayunlearn.metrics.evaluate import Measured, chosen_metrics, require_gold
from rayunlearn.metrics.table import METRICS, sources_of
from rayunlearn.models.cpu_offload import to_device_or_offload
from rayunlearn.models.folder import check_model
from rayunlearn.models.load import load_model, load_tokenizer, model_digest
from rayunlearn.registry import check_trial
from rayunlearn.schema import Rows
from rayunlearn.storage.artifact_cache import MANIFEST
from rayunlearn.storage.parquet import frame_of, parquet_bytes, read_table_file
from rayunlearn.storage.run_manifest import (
    OF_RUN,
    folder_defects,
    forget_files,
    read_contents,
    write_run_file,
)
from rayunlearn.train.device import accelerator
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.evaluate import (
    HOLDOUT_METRICS,
    examples_frame,
    grouped,
    measure_trial,
)
from rayunlearn.trial.identity import content_digests
from rayunlearn.trial.model_state import ModelState
from rayunlearn.trial.provenance import installed_versions
from rayunlearn.trial.workspace import Workspace

# what the manifest of an evaluation's folder says it is of, and the files there
EVALUATION = "evaluation"
ABOUT = "evaluation.json"
EVALUATION_FILES = ("examples.parquet", "evals.parquet", ABOUT)
TEXTS_FILE = "generations.parquet"


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What `rayunlearn evaluate` is asked.

    `benchmark`: a synthetic dataset, a benchmark or `files`, at `path`. `metrics` as
    `measure.metrics`. `gold`: a model that never saw the forget set, or examples.parquet of an
    evaluation of one; `base`: a model that metrics of distance compare with. `limit`: the first so
    many probes of each split (0: all). `assignments`: further settings of `data`, `measure` and
    metrics.
    """

    model: str
    benchmark: str
    path: str = ""
    metrics: str = "cheap"
    gold: str = ""
    base: str = ""
    limit: int = 0
    assignments: Mapping[str, Value] = field(default_factory=dict)

    @property
    def gold_model(self) -> str:
        """`gold` where it is a model, '' where it is a file of examples or none."""
        return "" if self.gold.endswith(".parquet") else self.gold


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Rows of the tables and what they are of: `about` goes to evaluation.json. `generations` is
    empty for a private corpus.
    """

    examples: Rows
    evals: Rows
    about: dict[str, Any]
    generations: Rows = field(default_factory=list)


def evaluate(request: EvaluationRequest, cache: Path) -> Evaluation:
    """Measure the model; the same request gives the same rows. Raises UserError for anything that
    cannot be asked.

    `trial_id` is the id of the trial of stage `base` that would start from this model, with the
    same `model.gold`. References
    of `base` are kept in `cache`.
    """
    require(request.limit >= 0, "--limit must be >= 0", request.limit)
    trial = requested_trial(request)
    _check_models(request, trial)
    corpus = limit_documents(evaluation_corpus(trial.data), request.limit)
    require(any(corpus.probes.values()), f"{request.benchmark} must have probes", 0)
    digest = model_digest(request.model)
    identity = trial_id(trial, corpus.digest, digest, content_digests(trial))
    workspace = Workspace(
        corpus,
        request.base,
        request.gold_model if request.base else "",
        model_digest(request.base) if request.base else "",
        cache,
    )
    gold = gold_rows(request.gold, trial, workspace) if request.gold else None
    measured = measure_loaded(request.model, trial, workspace)
    examples = measured.examples
    keys = {"trial_id": identity, "stage": "base", "attack": "none"}
    means = [
        *summarise_examples(examples_frame(examples)).to_dicts(),
        *corpus_rows(examples_frame(examples), gold),
    ]
    return Evaluation(
        examples=grouped([keys | row for row in examples], corpus),
        evals=[keys | {"step": 0} | row for row in means],
        about=_about(request, trial, corpus, identity=identity, model=digest),
        generations=[] if trial.data.private else [keys | row for row in measured.generations],
    )


def _check_models(request: EvaluationRequest, trial: Trial) -> None:
    """Raise UserError for a model that cannot be measured on such texts, and for a judge that is no
    chat model.
    """
    data, judge = trial.data, trial.judge.answers
    if judge:
        check_model(judge, setting="judge.answers", template="chat")
    named = {"MODEL": request.model, "--base": request.base, "--gold": request.gold_model}
    for option, name in named.items():
        if name:
            check_model(name, setting=option, template=data.template, max_tokens=data.max_tokens)


def _about(
    request: EvaluationRequest, trial: Trial, corpus: Corpus, *, identity: str, model: str
) -> dict[str, Any]:
    """What decided the rows: the models, the data and the settings; `model` is the digest."""
    data = trial.data
    cut = cut_note(corpus, load_tokenizer(request.model), data.template, data.max_tokens)
    return {
        "model": request.model,
        "model_digest": model,
        "corpus": corpus.name,
        "corpus_digest": corpus.digest,
        "trial_id": identity,
        "gold": request.gold,
        "base": request.base,
        "limit": request.limit,
        "settings": relevant_settings(trial),
        "files": [asdict(record) for record in corpus.files],
        "notes": [*corpus.notes, *cut],
        "packages": installed_versions(),
    }


def write_evaluation(folder: Path, done: Evaluation) -> None:
    """examples.parquet, evals.parquet and evaluation.json, and generations.parquet where the model
    wrote texts that may be shown, each in one rename; an earlier evaluation there is replaced.
    Their digests are in the folder's manifest, as those of a run's files.

    Raises UserError where the folder is that of a run.
    """
    if (folder / MANIFEST).exists() and isinstance(read_contents(folder, EVALUATION), str):
        is_run = not isinstance(read_contents(folder, OF_RUN), str)
        require(not is_run, "an evaluation must have a folder of its own, not a run's", folder)
        (folder / MANIFEST).unlink()
    _drop_texts(folder)
    texts = ("generations",) if done.generations else ()
    for table in ("examples", "evals", *texts):
        frame = frame_of(table, getattr(done, table))
        name, content = f"{table}.parquet", parquet_bytes(frame)
        write_run_file(folder, name, content, frame.height, owner=EVALUATION)
    about = json.dumps(done.about, indent=1, ensure_ascii=False).encode()
    write_run_file(folder, ABOUT, about, owner=EVALUATION)


def _drop_texts(folder: Path) -> None:
    """Remove the texts of an earlier evaluation: this one may have none, or may not show them."""
    if (folder / TEXTS_FILE).exists():
        forget_files(folder, (TEXTS_FILE,), owner=EVALUATION)


def is_evaluation(folder: Path) -> bool:
    """Whether `write_evaluation` has written to the folder."""
    return (folder / ABOUT).exists() or not isinstance(read_contents(folder, EVALUATION), str)


def evaluation_defects(folder: Path) -> dict[Path, str]:
    """The files of an evaluation that are not what was written: file -> what is wrong, and what can
    be done.
    """
    found = folder_defects(folder, EVALUATION, EVALUATION_FILES)
    again = "the command `rayunlearn evaluate` that wrote it writes it again"
    return {file: f"{wrong}; {again}" for file, wrong in found.items()}


def requested_trial(request: EvaluationRequest) -> Trial:
    """The trial of stage `base` whose measuring this is, checked."""
    data = {
        "data.name": request.benchmark,
        "data.path": request.path,
        "measure.metrics": request.metrics,
    }
    model = Model(name=request.model, teach=False, gold=request.gold_model)
    start = Trial(stage="base", model=model)
    trial = check_trial(
        with_values(
            start,
            {name: value for name, value in data.items() if value != ""}
            | dict(request.assignments),
        )
    )
    foreign = sorted(
        name
        for name in request.assignments
        if name.partition(".")[0] not in ("data", "measure", "judge", *METRICS)
    )
    rule = "--set takes settings of data, measure, judge and metrics here"
    require(not foreign, rule, ", ".join(foreign))
    compares = "base" in sources_of(chosen_metrics(trial.measure.metrics).values())
    require(
        bool(request.base) or not compares,
        "metrics that compare with another model (base_kl, reference_score) need --base",
        request.metrics,
    )
    has_both = bool(request.base) and bool(request.gold_model)
    require_gold(
        trial.measure.metrics, has_both, "--base BASE --gold MODEL, not a file of examples"
    )
    return trial


def relevant_settings(trial: Trial) -> dict[str, Value]:
    """The settings that decide what is measured."""
    return {
        name: value
        for name, value in flatten(trial).items()
        if name.partition(".")[0] in ("data", "measure", "judge")
    } | dict(trial.options)


def evaluation_corpus(data: Data) -> Corpus:
    """The corpus with all its probes; unlike a trial's it may have questions only."""
    if data.name in BENCHMARKS:
        options = parse_options(data.name, data.options)
        corpus = load_benchmark(data.name, data.path, options=options)
        corpus = paraphrases_apart(corpus) if data.name == "known" else corpus
        return with_probe_sets(corpus, data)
    return with_probe_sets(load_corpus(data), data)


def limit_documents(corpus: Corpus, n: int) -> Corpus:
    """The corpus with the first `n` probes of each split, and as many forget documents where those
    are asked (0: all).
    """
    if n == 0:
        return corpus
    note = f"only the first {n} probes of each split were asked"
    return replace(
        corpus,
        forget=corpus.forget[:n],
        probes={split: documents[:n] for split, documents in corpus.probes.items()},
        notes=(*corpus.notes, note),
    )


def measure_loaded(model: str, trial: Trial, workspace: Workspace) -> Measured:
    """What the trial measures of the model in float32 on this machine's device, and what it wrote;
    the model is let go again.
    """
    loaded, tokenizer = load_model(model, dtype=torch.float32)
    to_device_or_offload(loaded, accelerator().device).eval()
    return measure_trial(TrialContext(trial, workspace, ModelState(loaded, tokenizer, {}, 0)))


def measured_rows(model: str, trial: Trial, workspace: Workspace) -> Rows:
    """doc_id, split, metric, value, as `measure_loaded` has them."""
    return measure_loaded(model, trial, workspace).examples


def gold_rows(gold: str, trial: Trial, workspace: Workspace) -> pl.DataFrame | None:
    """Examples of the gold model: read where `gold` is a Parquet file, else measured, as far as
    corpus metrics hold them against ours.
    """
    if gold.endswith(".parquet"):
        return read_examples(Path(gold))
    metrics = [name for name in chosen_metrics(trial.measure.metrics) if name in GOLD_METRICS]
    if not metrics:
        return None
    short = {
        split: documents
        for split, documents in workspace.corpus.probes.items()
        if split in ("forget", *HOLDOUT_METRICS)
    }
    of_gold = {"measure.metrics": ",".join(metrics), "judge.answers": ""}
    compared = check_trial(with_values(trial, of_gold))
    return examples_frame(
        measured_rows(
            gold, compared, replace(workspace, corpus=replace(workspace.corpus, probes=short))
        )
    )


def read_examples(file: Path) -> pl.DataFrame:
    """Examples that an evaluation wrote. Raises UserError where there are none, and where they are
    not what was written.
    """
    require(
        file.is_file(), "--gold must be a model or the examples.parquet of an evaluation", str(file)
    )
    for damaged, wrong in evaluation_defects(file.parent).items():
        if damaged.name in (file.name, MANIFEST):
            raise UserError(f"{damaged} {wrong}")
    frame = read_table_file(file, pl.read_parquet)
    if not {"split", "metric", "value"} <= set(frame.columns):
        raise UserError(
            f"{file} must have the columns split, metric and value, it has"
            f" {', '.join(frame.columns)}"
        )
    return frame
