"""`rayunlearn evaluate`, `export` and `convert`: model directories in and out."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.cli.arguments import (
    DONE,
    add_command,
    add_plugin_option,
    add_run_argument,
    add_set_option,
    add_trial_argument,
    output_folder,
)
from rayunlearn.cli.output import console_for_output
from rayunlearn.config import parse_assignments
from rayunlearn.errors import require
from rayunlearn.storage.sync import local_run

if TYPE_CHECKING:
    from rayunlearn.interop.evaluate import Evaluation


def add_evaluate_command(commands: Any) -> None:
    """`evaluate MODEL`."""
    added = add_command(
        commands,
        "evaluate",
        evaluate_model,
        "measure any model directory with a trial's metrics, or with tasks of"
        " lm-evaluation-harness",
    )
    added.add_argument("model", metavar="MODEL", help="directory or Hub name")
    _add_benchmark_options(added)
    added.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=0,
        help="the first N questions of each split or task (default: all)",
    )
    add_set_option(added, "e.g. data.options=size=05")
    _add_harness_options(added)
    added.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="examples.parquet, evals.parquet, generations.parquet and evaluation.json go there",
    )


def _add_benchmark_options(added: argparse.ArgumentParser) -> None:
    """What a trial's metrics are measured on, and what they compare the model with."""
    added.add_argument(
        "--benchmark",
        metavar="NAME",
        default="",
        help="tofu, muse-news, ... (docs/benchmarks.md), files, or synthetic: domain, people",
    )
    added.add_argument(
        "--data", metavar="PATH", default="", help="as data.path: folder, file or Hub name of it"
    )
    added.add_argument(
        "--metrics",
        metavar="cheap|all|NAME,...",
        default="cheap",
        help="see `rayunlearn list metrics` (default: cheap)",
    )
    added.add_argument(
        "--gold",
        metavar="MODEL|FILE",
        default="",
        help="a model that never saw the forget set, or an evaluation's examples.parquet",
    )
    added.add_argument(
        "--base",
        metavar="MODEL",
        default="",
        help="a model to compare with (base_kl, reference_score)",
    )


def _add_harness_options(added: argparse.ArgumentParser) -> None:
    """Tasks of lm-evaluation-harness, the library's or your own."""
    added.add_argument(
        "--harness",
        metavar="TASK,...",
        default="",
        help="tasks of lm-evaluation-harness (pip install 'rayunlearn[harness]')",
    )
    added.add_argument(
        "--harness-tasks", metavar="DIR", type=Path, help="a folder with your own tasks"
    )


def add_export_command(commands: Any) -> None:
    """`export RUN TRIAL`."""
    added = add_command(
        commands,
        "export",
        export,
        "write a trial's model as an ordinary Hugging Face directory with a model card",
    )
    add_run_argument(added)
    add_trial_argument(added)
    add_plugin_option(added)
    added.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="the new directory"
    )
    added.add_argument(
        "--adapter-only", action="store_true", help="of a LoRA trial, the adapter without the model"
    )


def add_convert_command(commands: Any) -> None:
    added = add_command(
        commands,
        "convert",
        convert,
        "write the model in a GGUF file as an ordinary Hugging Face directory, weights widened to"
        " float32 (pip install 'rayunlearn[gguf]')",
    )
    added.add_argument("file", metavar="FILE.gguf", type=Path, help="the file")
    added.add_argument("directory", metavar="DIR", type=Path, help="the new directory")


def evaluate_model(chosen: argparse.Namespace) -> int:
    """Measure a model on a benchmark, or the harness's tasks, or both; Parquet and a table."""
    from rayunlearn.interop.evaluate import Evaluation, write_evaluation

    require(
        bool(chosen.benchmark or chosen.harness),
        "evaluate needs --benchmark or --harness",
        chosen.benchmark,
    )
    output_folder(chosen.output)
    done = Evaluation(examples=[], evals=[], about={"model": chosen.model, "limit": chosen.limit})
    if chosen.benchmark:
        done = _benchmark_evaluation(chosen)
    if chosen.harness:
        _add_harness_tasks(done, chosen)
    write_evaluation(chosen.output, done)
    _print_evaluation(done, chosen.output)
    return DONE


def _benchmark_evaluation(chosen: argparse.Namespace) -> "Evaluation":
    """The model on the benchmark, by a trial's metrics."""
    from rayunlearn.interop.evaluate import EvaluationRequest, evaluate

    names = ("model", "benchmark", "metrics", "gold", "base", "limit")
    request = EvaluationRequest(
        path=chosen.data,
        **{name: getattr(chosen, name) for name in names},
        assignments=parse_assignments(chosen.assignments),
    )
    return evaluate(request, chosen.output / "cache")


def _add_harness_tasks(done: "Evaluation", chosen: argparse.Namespace) -> None:
    """Append what the harness's tasks measure."""
    from rayunlearn.interop.lm_eval import run_harness

    tasks = [task.strip() for task in chosen.harness.split(",")]
    done.evals.extend(
        run_harness(chosen.model, tasks, include=chosen.harness_tasks, limit=chosen.limit)
    )
    done.about["harness"] = {"tasks": tasks}


def _print_evaluation(done: "Evaluation", output: Path) -> None:
    """The means as a table, the notes, and where the files are."""
    import polars as pl

    from rayunlearn.reporting.console import print_evals
    from rayunlearn.storage.parquet import frame_of

    evals = frame_of("evals", done.evals).sort(pl.col("split"), pl.col("metric"))
    print_evals(console_for_output(), evals)
    for note in done.about.get("notes", ()):
        print(f"note: {note}")
    print(f"{len(done.evals)} means of {len(done.examples)} values: {output}")


def export(chosen: argparse.Namespace) -> int:
    """A trial's model as a directory."""
    from rayunlearn.interop.export import export_trial

    output_folder(chosen.output)
    print(
        export_trial(
            local_run(chosen.run), chosen.trial, chosen.output, adapter_only=chosen.adapter_only
        )
    )
    return DONE


def convert(chosen: argparse.Namespace) -> int:
    """A GGUF file as a directory, and what was found in it."""
    from rayunlearn.models.gguf import convert_gguf
    from rayunlearn.models.load import model_digest

    converted = convert_gguf(chosen.file, chosen.directory)
    written = f"written: {chosen.directory}, digest {model_digest(str(chosen.directory))}"
    print("\n".join([*converted.lines(), written]))
    return DONE
