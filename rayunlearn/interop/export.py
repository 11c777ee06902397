"""A trial's model as an ordinary Hugging Face directory, with a model card that says where it comes
from and what it is not.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from rayunlearn.analysis.intervals import Interval, bounds_of, mean_interval
from rayunlearn.analysis.labels import format_number
from rayunlearn.analysis.run_frames import measured_of
from rayunlearn.config import SUBSTITUTES, Trial, flatten
from rayunlearn.data.documents import Corpus
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.retain import RETAIN
from rayunlearn.models.folder import stored_dtype
from rayunlearn.models.load import save_model
from rayunlearn.models.model_files import resolve_model
from rayunlearn.selectors.retain import RETAIN_SELECTORS
from rayunlearn.selectors.table import SELECTORS
from rayunlearn.storage.run import Run, open_run
from rayunlearn.trial.load import LoadedTrial, load_trial
from rayunlearn.trial.rebuild import rebuild_model
from rayunlearn.trial.workspace import start_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CARD_HEADER = "---\nlibrary_name: transformers\ntags:\n- unlearning\n- rayunlearn\n---\n\n"

CARD_LIMITS = """\
- The metrics above were measured on the probes of this corpus alone. Nothing is said of other \
questions or languages.
- Low numbers on the forget set do not show that the knowledge is gone: attacks may recover it, \
and where none is listed above, none was tried on this model.
- An interval is over documents, for this one model: another seed of the same settings differs by \
more.
- The model has the limits and the licence terms of the model and the data it was made from."""


def export_trial(run: Path, trial_id: str, output: Path, *, adapter_only: bool = False) -> str:
    """Write the model that a trial ended with to the new directory `output`; returns a line that
    says what was written.

    Weights (safetensors in the number type of the model that the trial started from, LoRA merged),
    configuration, tokenizer, README.md (the model card) and provenance.json. `adapter_only`: a
    LoRA trial's adapter as peft reads it, in place of weights and tokenizer. The weights are read
    from the cache or unlearned again. Raises UserError as `load_trial`, for an adapter that is not
    there, and for an `output` that exists.
    """
    require(
        not output.exists(), "--output must be a directory that does not exist yet", str(output)
    )
    trial_to_export = load_trial(run, trial_id)
    opened = open_run(run)
    notes = {
        "README.md": model_card(trial_to_export, opened),
        "provenance.json": json.dumps(
            card_provenance(trial_to_export), indent=1, ensure_ascii=False
        )
        + "\n",
    }
    if adapter_only:
        write_adapter(trial_to_export, run / "adapters" / trial_to_export.trial_id, output, notes)
        return f"the adapter of trial {trial_to_export.trial_id}: {output}"
    context = rebuild_model(trial_to_export.trial, trial_to_export.workspace)
    model = _in_stored_type(context.model, trial_to_export)
    save_model(model, context.tokenizer, output, notes=notes)
    stage = trial_to_export.trial.stage
    return f"the model of trial {trial_to_export.trial_id} (stage {stage}): {output}"


def stored_type(trial_to_export: LoadedTrial) -> str:
    """The number type of the model that the trial started from; trials train and measure in
    float32.
    """
    start = start_folder(trial_to_export.trial, trial_to_export.workspace)
    return stored_dtype(resolve_model(start)) or "float32"


def _in_stored_type(model: PreTrainedModel, trial_to_export: LoadedTrial) -> PreTrainedModel:
    """The model in the number type that it is exported in; a copy where that is another, because
    this process's next trial takes the model.
    """
    dtype = getattr(torch, stored_type(trial_to_export))
    return model if model.dtype == dtype else copy.deepcopy(model).to(dtype)


def write_adapter(
    trial_to_export: LoadedTrial, folder: Path, output: Path, notes: Mapping[str, str]
) -> None:
    """The adapter that the run kept, and the notes; the name of the model it belongs to is put in
    where that is not a folder of ours.
    """
    require(
        trial_to_export.trial.train.adapter == "lora",
        "--adapter-only needs a trial with train.adapter=lora, this one has",
        trial_to_export.trial.train.adapter,
    )
    require(
        (folder / "adapter_config.json").is_file(),
        "the run must still have the trial's adapter, looked for",
        str(folder),
    )
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(folder, temporary)
    settings = json.loads((temporary / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = (
        None if trial_to_export.trial.model.teach else trial_to_export.trial.model.name
    )
    for file, text in {**notes, "adapter_config.json": json.dumps(settings, indent=1)}.items():
        (temporary / file).write_text(text, encoding="utf-8")
    temporary.rename(output)


def card_provenance(trial_to_export: LoadedTrial) -> dict[str, Any]:
    """Everything that decided the weights: settings, digests, files read, commit, versions,
    hardware.
    """
    row, corpus = trial_to_export.row, trial_to_export.workspace.corpus
    names = (
        "experiment",
        "version",
        "status",
        "commit",
        "started_at",
        "hardware",
        "corpus_digest",
        "model_digest",
        "n_forget",
        "n_kept",
        "coverage",
    )
    named = {
        name: row[name]
        for name in (*names, "optimizer_steps", "presentations", "tokens", "parameters_trained")
    }
    files = [vars(record) for record in corpus.files]
    return {
        "trial_id": trial_to_export.trial_id,
        "stored_as": stored_type(trial_to_export),
        **named,
        "packages": json.loads(row["packages"] or "{}"),
        "files": files,
        "settings": flatten(trial_to_export.trial),
    }


def model_card(trial_to_export: LoadedTrial, opened: Run) -> str:
    """The model card: what was forgotten, from which part, how, what it measures, its limits and
    its provenance.
    """
    trial, row = trial_to_export.trial, trial_to_export.row
    title = {
        "unlearned": "after unlearning",
        "base": "before unlearning",
        "gold": "that never saw the forget set",
    }[trial.stage]
    unlearned = trial.stage == "unlearned"
    parts = [
        f"# {started_from(trial)}, {title}",
        (
            f"Written by `rayunlearn export` from trial `{trial_to_export.trial_id}` of experiment"
            f" `{row['experiment']}`, version {row['version']}."
        ),
        "## What was forgotten" if unlearned else "## The corpus",
        about_corpus(trial_to_export.workspace.corpus, trial),
        *(("## Coreset and method", about_method(trial, row)) if unlearned else ()),
        "## Metrics",
        metrics_table(trial_to_export, opened),
        "## Limits",
        _limits(str(row["status"])),
        "## Provenance",
        *_provenance_tables(trial_to_export),
    ]
    return CARD_HEADER + "\n\n".join(parts) + "\n"


def _limits(status: str) -> str:
    """What the model cannot be used for; first that its trial was stopped, where it was."""
    if status == "complete":
        return CARD_LIMITS
    return (
        f"- This trial was stopped early as `{status}`: it lost what it should have kept.\n"
        f"{CARD_LIMITS}"
    )


def _provenance_tables(trial_to_export: LoadedTrial) -> tuple[str, ...]:
    """What made the weights, the versions of packages, and every setting."""
    recorded = card_provenance(trial_to_export)
    apart = ("settings", "files", "packages")
    return (
        markdown_table(("", ""), [(n, value) for n, value in recorded.items() if n not in apart]),
        markdown_table(("package", "version"), list(recorded["packages"].items())),
        "## All settings",
        markdown_table(("setting", "value"), list(recorded["settings"].items())),
    )


def started_from(trial: Trial) -> str:
    """The model before, by a name that says nothing of this machine's folders."""
    name = (
        "a small Llama-style model built by rayunlearn"
        if trial.model.name == "scratch"
        else Path(trial.model.name).name
    )
    return f"{name}, trained on the corpus" if trial.model.teach else name


def about_corpus(corpus: Corpus, trial: Trial) -> str:
    """Name, size and files."""
    description = (
        f"Corpus `{corpus.name}` (digest `{corpus.digest}`): {len(corpus.forget)} documents to"
        f" forget, {len(corpus.retain)} to keep."
    )
    origin = f" It is generated, from `data.seed` {trial.data.seed}." if not corpus.files else ""
    files = (
        markdown_table(
            ("file", "rows", "SHA-256", "state"),
            [(f.table, f.rows, f.sha256, f.state) for f in corpus.files],
        )
        if corpus.files
        else ""
    )
    notes = "\n".join(f"- {note}" for note in corpus.notes)
    return "\n\n".join(part for part in (description + origin, files, notes) if part)


def _words_of(text: str) -> str:
    """What of the kept documents was trained on, as `select.text` says; '' for the whole."""
    if text == "original":
        return ""
    if text in SUBSTITUTES:
        return f"; in their place the control `{text}` was trained on"
    return f", in the words that `{text}` leaves"


def _retained_words(trial: Trial, row: Mapping[str, Any]) -> str:
    """What of the retain set trained, '' for all of it."""
    retain = trial.retain
    if retain.is_full or row.get("n_retained") is None:
        return ""
    name, source = retain.name, RETAIN_SELECTORS[retain.name].source
    general = f", {retain.general:.0%} of them general text" if retain.general else ""
    return f"; of the retain set {row['n_retained']}{general}, chosen by `{name}` ({source})"


def about_method(trial: Trial, row: Mapping[str, Any]) -> str:
    """The kept documents and the two losses, with their sources."""
    select, method = trial.select, trial.method
    forget, retain = FORGET[method.forget], RETAIN[method.retain]
    coreset_words = (
        f"{row['n_kept']} of {row['n_forget']} documents (ratio {select.ratio}), chosen by"
        f" `{select.name}` ({SELECTORS[select.name].source})"
    )
    words = _words_of(select.text) + _retained_words(trial, row)
    losses = (
        f"Forget loss `{method.forget}`: {forget.title} ({forget.source}), weight"
        f" {method.forget_weight}. Retain loss `{method.retain}`: {retain.title}, weight"
        f" {method.retain_weight}."
    )
    trained = f"{row['optimizer_steps']} optimizer steps at a rate of {trial.train.learning_rate}"
    trained += f", {row['parameters_trained']} of {row['parameters_total']} parameters"
    adapter = " in LoRA adapters" if trial.train.adapter == "lora" else ""
    return f"{coreset_words}{words}. {losses} {trained}{adapter}."


def metrics_table(trial_to_export: LoadedTrial, opened: Run) -> str:
    """Split, metric and this model's mean with its 95% interval, beside base and gold of the same
    run where they are.
    """
    same = opened.trials.filter(
        pl.col("corpus_digest") == trial_to_export.row["corpus_digest"],
        pl.col("model_digest") == trial_to_export.row["model_digest"],
    )
    other_stages = (
        same.filter(pl.col("stage").is_in(["base", "gold"]) & pl.col("status").is_in(["complete"]))
        .select("trial_id", "stage")
        .collect()
    )
    ids = {
        stage: trial_id
        for trial_id, stage in other_stages.iter_rows()
        if trial_id != trial_to_export.trial_id
    }
    columns = {
        trial_to_export.trial.stage: trial_to_export.trial_id,
        **{stage: ids[stage] for stage in ("base", "gold") if stage in ids},
    }
    measured = {stage: intervals(opened, trial_id, stage) for stage, trial_id in columns.items()}
    rows = [
        (*row, *(_interval(measured[stage].get(row)) for stage in columns))
        for row in measured[trial_to_export.trial.stage]
    ]
    return (
        markdown_table(("split", "metric", *columns), rows)
        + "\n\nMean over the documents of the split, [95% t interval over them]."
    )


def intervals(opened: Run, trial_id: str, stage: str) -> dict[tuple[str, str], Interval]:
    """(split, metric) -> mean and interval of a trial's documents at its own stage, without
    attacks.
    """
    examples = opened.examples.filter(
        pl.col("trial_id") == trial_id, pl.col("stage") == stage, pl.col("attack") == "none"
    )
    intervals_by_split = {}
    for (split, metric), rows in (
        examples.drop_nulls("value")
        .collect()
        .sort("split", "metric")
        .group_by("split", "metric", maintain_order=True)
    ):
        measured = measured_of(rows)
        intervals_by_split[str(split), str(metric)] = mean_interval(
            measured.values,
            groups=measured.groups,
            bounds=bounds_of(opened.experiment, str(metric)),
        )
    return intervals_by_split


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; a bar and a line break in a cell are written so that they stay in it."""
    cells = [[_cell(value) for value in row] for row in rows]
    lines = (list(head), ["---"] * len(head), *cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    """'' for None, a float as everywhere, anything else as it is."""
    if value is None:
        return ""
    text = format_number(value) if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", "\\n")


def _interval(interval: Interval | None) -> str:
    if interval is None or interval.mean is None:
        return "–"
    if interval.low is None:
        return format_number(interval.mean)
    bounds = f"[{format_number(interval.low)}, {format_number(interval.high)}]"
    return f"{format_number(interval.mean)} {bounds}"
