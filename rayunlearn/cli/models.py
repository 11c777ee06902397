"""`rayunlearn evaluate` and `export`: model directories in and out."""

import argparse
from pathlib import Path
from typing import Any

from rayunlearn.cli.arguments import DONE, add_command
from rayunlearn.cli.output import console_for_output
from rayunlearn.config import parse_assignments
from rayunlearn.errors import require
from rayunlearn.storage.sync import local_run


def add_evaluate_command(commands: Any) -> None:
    added = add_command(
        commands,
        "evaluate",
        evaluate_model,
        "measure any model directory with a trial's metrics, or with tasks of"
        " lm-evaluation-harness",
    )
    added.add_argument("model", metavar="MODEL", help="directory or Hub name")
    added.add_argument(
        "--benchmark",
        metavar="NAME",
        default="",
        help="tofu, muse-news, ... (docs/benchmarks.md), files, or synthetic: domain, people",
    )
    added.add_argument(
        "--path", metavar="DIR", default="", help="where the benchmark is: a folder or Hub name"
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
    added.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=0,
        help="the first N questions of each split or task (default: all)",
    )
    added.add_argument(
        "--set",
        dest="assignments",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="e.g. data.options=size=05",
    )
    added.add_argument(
        "--harness",
        metavar="TASK,...",
        default="",
        help="tasks of lm-evaluation-harness (pip install 'rayunlearn[harness]')",
    )
    added.add_argument(
        "--harness-tasks", metavar="DIR", type=Path, help="a folder with your own tasks"
    )
    added.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="examples.parquet, evals.parquet and evaluation.json go there",
    )


def add_export_command(commands: Any) -> None:
    added = add_command(
        commands,
        "export",
        export,
        "write a trial's model as an ordinary Hugging Face directory with a model card",
    )
    added.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    added.add_argument("trial", metavar="TRIAL", help="trial id, or the beginning of it")
    added.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="the new directory"
    )
    added.add_argument(
        "--adapter-only", action="store_true", help="of a LoRA trial, the adapter without the model"
    )


def evaluate_model(chosen: argparse.Namespace) -> int:
    """Measure a model on a benchmark, or the harness's tasks, or both; Parquet and a table."""
    import polars as pl

    from rayunlearn.interop.evaluate import Evaluation, EvaluationRequest, write_evaluation
    from rayunlearn.interop.evaluate import evaluate as measure
    from rayunlearn.reporting.console import print_evals
    from rayunlearn.storage.parquet import frame_of

    require(
        bool(chosen.benchmark or chosen.harness),
        "evaluate needs --benchmark or --harness",
        chosen.benchmark,
    )
    names = ("model", "benchmark", "path", "metrics", "gold", "base", "limit")
    done = Evaluation(examples=[], evals=[], about={"model": chosen.model, "limit": chosen.limit})
    if chosen.benchmark:
        request = EvaluationRequest(
            **{name: getattr(chosen, name) for name in names},
            assignments=parse_assignments(chosen.assignments),
        )
        done = measure(request, chosen.output / "cache")
    if chosen.harness:
        from rayunlearn.interop.lm_eval import run_harness

        tasks = [task.strip() for task in chosen.harness.split(",")]
        done.evals.extend(
            run_harness(chosen.model, tasks, include=chosen.harness_tasks, limit=chosen.limit)
        )
        done.about["harness"] = {"tasks": tasks}
    write_evaluation(chosen.output, done)
    print_evals(
        console_for_output(), frame_of("evals", done.evals).sort(pl.col("split"), pl.col("metric"))
    )
    for note in done.about.get("notes", ()):
        print(f"note: {note}")
    print(f"{len(done.evals)} means of {len(done.examples)} values: {chosen.output}")
    return DONE


def export(chosen: argparse.Namespace) -> int:
    """A trial's model as a directory."""
    from rayunlearn.interop.export import export_trial

    print(
        export_trial(
            local_run(chosen.run), chosen.trial, chosen.output, adapter_only=chosen.adapter_only
        )
    )
    return DONE
