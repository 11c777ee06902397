"""The command line: one function per command, named as the command is. Nothing heavy is imported
until it is needed.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayunlearn.config import Data, parse_assignments
from rayunlearn.errors import UserError, require, unknown_name, without_secrets
from rayunlearn.results.mirror import brought, output_place, refresh, shown

if TYPE_CHECKING:
    from rich.console import Console

    from rayunlearn.attackplan import AttackPlanner
    from rayunlearn.cluster.sweep import Options, SweepResult
    from rayunlearn.experiment import Attacks, Experiment
    from rayunlearn.plan import Agenda, Result

LISTS = ("methods", "recipes", "selectors", "extractors", "metrics", "attacks", "experiments")
DONE, INCOMPLETE, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 not everything finished, 2 a mistake in
    the request, 130 interrupted.
    """
    chosen = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = chosen.command
    try:
        return command(chosen)
    except UserError as error:
        print(f"rayunlearn: {without_secrets(str(error))}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("rayunlearn: interrupted", file=sys.stderr)
        return INTERRUPTED
    # `rayunlearn list methods | head`
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def parser() -> argparse.ArgumentParser:
    """Every command with its help."""
    top = argparse.ArgumentParser(
        prog="rayunlearn",
        description=(
            "Experiments on unlearning in language models: how little of the forget set is enough?"
        ),
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_experiment(
        commands,
        "run",
        run,
        "run an experiment: what has finished is skipped, the rest runs on Ray",
        on_cluster=True,
    )
    _add_experiment(
        commands,
        "plan",
        plan,
        "say what `run` would do, how long it takes and what it needs, without Ray",
    )
    _add_experiment(
        commands,
        "prepare",
        prepare,
        "build the corpora and teach the base and gold models, nothing else",
        on_cluster=True,
    )
    report_parser = _add(
        commands, "report", report, "rebuild the report of a run from its Parquet files"
    )
    report_parser.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    forms = "html prints the table too; pdf needs the extra `pdf` (default: html)"
    report_parser.add_argument(
        "--format", dest="form", metavar="html|md|json|pdf", default="html", help=forms
    )
    show_parser = _add(
        commands, "show", show, "print one trial: its settings, its fate, its numbers"
    )
    show_parser.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    show_parser.add_argument("trial", metavar="TRIAL", help="trial id, or the beginning of it")
    frontier_parser = _add(
        commands,
        "frontier",
        frontier,
        "test which part of the forget set does what the whole does, within a margin",
    )
    frontier_parser.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    frontier_parser.add_argument(
        "--margin",
        metavar="M",
        type=float,
        default=0.1,
        help="difference of either metric that does not matter (default: 0.1)",
    )
    studies_parser = _add(
        commands,
        "studies",
        studies,
        "write the run's Optuna studies as a SQLite file that optuna-dashboard opens",
    )
    studies_parser.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    studies_parser.add_argument(
        "--output", metavar="FILE", default="", help="default: studies.db in the run"
    )
    _add_attack(commands)
    _add_explain(commands)
    list_parser = _add(
        commands,
        "list",
        show_list,
        "list methods, recipes, selectors, extractors, metrics (hyperparameters, defaults, sources)"
        " or experiments",
    )
    list_parser.add_argument("what", metavar="|".join(LISTS), help="which table")
    _add_keywords(commands)
    _add_score(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add_submit(commands)
    _add_books(commands)
    return top


def _add_attack(commands: Any) -> None:
    added = _add(
        commands,
        "attack",
        attack,
        "attack trials of a run, or a model made elsewhere; print what came back, beside base, gold"
        " and controls",
    )
    added.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        default="",
        help="folder or URL of a run, for example runs/hello/1",
    )
    which = (
        "best (default): most forgotten at kept utility, one per method; pareto; grid: every cell;"
        " or ids, separated by commas"
    )
    added.add_argument("--trials", metavar="best|pareto|grid|ID,ID", default="best", help=which)
    added.add_argument(
        "--panel",
        metavar="quick|black_box|coresets|full",
        default="quick",
        help="which attacks (default: quick; see docs/attacks.md)",
    )
    added.add_argument(
        "--attacks",
        metavar="NAME,NAME",
        default="",
        help="only these (see `rayunlearn list attacks`)",
    )
    added.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        help="seeds of attacks that draw (default: the panel's, 3)",
    )
    points = (
        "most points of a recovery curve (default: 100, which is every step of the searched"
        " strengths)"
    )
    added.add_argument("--curve-points", metavar="N", type=int, help=points)
    added.add_argument(
        "--text",
        metavar="FILE",
        default="",
        help="unrelated text to train on: .txt by paragraphs, or a data file (default: our own)",
    )
    added.add_argument(
        "--rephrasings",
        metavar="FILE",
        default="",
        help="questions in other words: columns doc_id, condition, text",
    )
    added.add_argument(
        "--chat-model",
        metavar="MODEL",
        default="",
        help="directory or Hub name of a chat model that rephrases",
    )
    added.add_argument(
        "--metric",
        metavar="NAME",
        default="",
        help="metric of the matrix (default: the objective's forgetting metric)",
    )
    added.add_argument(
        "--address",
        metavar="auto|local|ray://HOST:PORT|HOST:PORT",
        default="auto",
        help=ADDRESS_HELP,
    )
    added.add_argument(
        "--workers", metavar="N", type=int, default=0, help="attacks at once (default: one per CPU)"
    )
    added.add_argument("--gpus-per-trial", metavar="F", type=float, help="as in `run`")
    audit = added.add_argument_group("a model made elsewhere, in the place of RUN")
    audit.add_argument(
        "--model",
        metavar="MODEL",
        default="",
        help="the unlearned model: a directory or Hub name, safetensors only",
    )
    audit.add_argument("--base", metavar="MODEL", default="", help="the model before unlearning")
    audit.add_argument(
        "--gold",
        metavar="MODEL",
        default="",
        help="a model that never saw what was to be forgotten (default: none)",
    )
    audit.add_argument(
        "--benchmark",
        metavar="NAME",
        default="files",
        help="as data.name: tofu, wmdp-bio, ..., files (the default)",
    )
    audit.add_argument(
        "--data",
        metavar="PATH",
        default="",
        help="as data.path: folder, file or Hub name of the data",
    )
    audit.add_argument(
        "--set",
        dest="assignments",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="any other setting of data, measure",
    )
    audit.add_argument(
        "--output",
        metavar="DIR|URL",
        default="runs",
        help="where the audit's run lives (default: runs)",
    )


def _add_explain(commands: Any) -> None:
    added = _add(
        commands,
        "explain",
        explain,
        "show what the words of a question did for its answer, before and after a trial",
    )
    added.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    added.add_argument("trial", metavar="TRIAL", help="trial id, or the beginning of it")
    added.add_argument(
        "--doc",
        metavar="ID",
        default="",
        help="question, or the beginning of its id (default: the first of the forget set)",
    )
    path_parser = _add(
        commands,
        "path",
        path,
        "measure the models on the straight line between the weights of two trials",
    )
    path_parser.add_argument(
        "run", metavar="RUN", help="folder or URL of a run, for example runs/hello/1"
    )
    path_parser.add_argument("first", metavar="TRIAL", help="trial id, or the beginning of it")
    path_parser.add_argument(
        "second", metavar="TRIAL", help="another trial of the same architecture"
    )
    path_parser.add_argument(
        "--points",
        metavar="N",
        type=int,
        default=11,
        help="models that are measured, both ends counted (default: 11)",
    )


def _add_keywords(commands: Any) -> None:
    added = _add(
        commands, "keywords", keywords, "find the keywords of a corpus and write them to Parquet"
    )
    _add_corpus(added, "keywords.parquet")
    added.add_argument(
        "--extractor", metavar="NAME", required=True, help="see `rayunlearn list extractors`"
    )
    added.add_argument(
        "--retain",
        metavar="CORPUS",
        default="",
        help=(
            "what the corpus is compared with (log_odds, linked; slots may); a test bed brings"
            " its own"
        ),
    )
    added.add_argument(
        "--base",
        metavar="MODEL",
        default="",
        help="directory or Hub name (embedding, loss_gap, gradient_gap)",
    )
    added.add_argument(
        "--gold",
        metavar="MODEL",
        default="",
        help="a model that never saw the corpus (loss_gap, gradient_gap)",
    )
    added.add_argument("--judge", metavar="MODEL", default="", help="a chat model (judge)")
    added.add_argument(
        "--set",
        dest="assignments",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="e.g. tfidf.earliness=0",
    )
    added.add_argument(
        "--top",
        metavar="N",
        type=int,
        default=0,
        help="keywords of a document that are written, the best (default: all)",
    )
    added.add_argument(
        "--show",
        metavar="N",
        type=int,
        default=3,
        help="documents whose keywords are printed (default: 3)",
    )


def _add_score(commands: Any) -> None:
    added = _add(
        commands,
        "score",
        score,
        "score the documents of a corpus by one forward pass of a model and write them to Parquet",
    )
    _add_corpus(added, "scores.parquet")
    added.add_argument("--base", metavar="MODEL", required=True, help="directory or Hub name")
    added.add_argument(
        "--scores",
        metavar="NAME,NAME",
        default="loss",
        help="loss, min_k, min_k_plus, el2n, zlib (default: loss)",
    )
    added.add_argument(
        "--template",
        metavar="TEXT",
        default=Data.template,
        help="as data.template, for documents with a prompt",
    )
    added.add_argument(
        "--max-tokens",
        metavar="N",
        type=int,
        default=Data.max_tokens,
        help="as data.max_tokens; a longer document loses its end",
    )
    added.add_argument(
        "--set",
        dest="assignments",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="e.g. min_k.fraction=0.2",
    )


def _add_corpus(added: argparse.ArgumentParser, output: str) -> None:
    formats = (
        "a file (.parquet, .jsonl, .json, .csv, .txt), a folder of files of one kind, or a test"
        " bed: domain, people"
    )
    added.add_argument("corpus", metavar="CORPUS", help=formats)
    added.add_argument(
        "--columns",
        metavar="OURS=THEIRS",
        default="",
        help="as data.columns: answer=text,prompt=question",
    )
    added.add_argument(
        "--chunk-words",
        metavar="N",
        type=int,
        default=0,
        help="cut documents after every N words (default: they stay whole)",
    )
    units = (
        "what a document of a .txt file is: line, paragraph, file (default: line; file in a folder)"
    )
    added.add_argument("--text-unit", dest="unit", metavar="UNIT", default="", help=units)
    added.add_argument(
        "--output",
        metavar="PATH",
        type=Path,
        default=Path(output),
        help=f"a .parquet file, or a new folder of them ({output})",
    )
    engines = (
        "local: this machine's processes; ray: Ray Data; auto: ray above 256 MiB of files (default:"
        " auto)"
    )
    added.add_argument("--engine", metavar="auto|local|ray", default="auto", help=engines)
    added.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=0,
        help="processes or actors at once (default: one per CPU or GPU)",
    )
    added.add_argument(
        "--address",
        metavar="auto|local|ray://HOST:PORT|HOST:PORT",
        default="auto",
        help=ADDRESS_HELP,
    )


def _add_evaluate(commands: Any) -> None:
    added = _add(
        commands,
        "evaluate",
        evaluate,
        "measure any model directory with a trial's metrics, or with tasks of"
        " lm-evaluation-harness",
    )
    added.add_argument("model", metavar="MODEL", help="directory or Hub name")
    added.add_argument(
        "--benchmark",
        metavar="NAME",
        default="",
        help="tofu, muse-news, ... (docs/benchmarks.md), files, or a test bed: domain, people",
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
        "--harness-tasks", metavar="DIR", type=Path, help="a folder with tasks of one's own"
    )
    added.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="examples.parquet, evals.parquet and evaluation.json go there",
    )


def _add_export(commands: Any) -> None:
    added = _add(
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


def _add_submit(commands: Any) -> None:
    added = _add_experiment(
        commands,
        "submit",
        submit,
        "run an experiment on a cluster: pack this folder, hand it to the job server, follow it",
    )
    added.add_argument(
        "--address",
        metavar="URL",
        required=True,
        help="the cluster's job server, http://HOST:8265 (see docs/cluster.md)",
    )
    added.add_argument("--gpus-per-trial", metavar="F", type=float, help="as in `run`")
    added.add_argument(
        "--processes-per-trial", metavar="N", type=int, default=1, help="as in `run`"
    )
    added.add_argument("--on", metavar="RESOURCE", default="", help="as in `run`")
    added.add_argument(
        "--include",
        metavar="PATH",
        nargs="+",
        action="extend",
        default=[],
        help="pack this too, although git ignores it",
    )
    added.add_argument(
        "--pass",
        dest="variables",
        metavar="NAME",
        nargs="+",
        action="extend",
        default=[],
        help="environment variables to give to the job",
    )
    added.add_argument(
        "--install",
        action="store_true",
        help="install the packed project on the machines first (minutes, once per change of it)",
    )
    how = added.add_mutually_exclusive_group()
    how.add_argument(
        "--follow",
        action="store_true",
        help="print what the job prints and return its exit status (the default)",
    )
    how.add_argument("--detach", action="store_true", help="return as soon as the job is accepted")
    jobs_parser = _add(
        commands,
        "jobs",
        jobs,
        "list the jobs of a cluster with where their runs are, follow one, or stop it",
    )
    jobs_parser.add_argument(
        "job", metavar="JOB", nargs="?", default="", help="follow this job (default: list all)"
    )
    jobs_parser.add_argument(
        "--address", metavar="URL", required=True, help="the cluster's job server, http://HOST:8265"
    )
    jobs_parser.add_argument(
        "--stop", action="store_true", help="end the job; what has finished is kept"
    )


def submit(chosen: argparse.Namespace) -> int:
    """Pack, hand over, follow."""
    from rayunlearn.cluster.submit import Submission
    from rayunlearn.cluster.submit import submit as hand_over
    from rayunlearn.families import check

    experiment = _experiment(chosen)
    # a mistake shows here, before anything is uploaded
    check(experiment.base)
    folder = Path.cwd()
    file = Path(chosen.experiment).resolve()
    require(
        file.is_relative_to(folder),
        "the experiment must lie in the folder that is packed (the current one)",
        str(file),
    )
    missing = [name for name in chosen.variables if name not in os.environ]
    require(not missing, "--pass must name environment variables that are set", missing)
    request = Submission(
        words=tuple(_words_of_the_job(chosen, file.relative_to(folder))),
        experiment=experiment.name,
        version=experiment.version,
        output=shown(chosen.output),
        folder=folder,
        include=tuple(chosen.include),
        variables={name: os.environ[name] for name in chosen.variables},
        install=chosen.install,
    )
    job = hand_over(request, chosen.address, print)
    print(
        f"job {job}; again: rayunlearn jobs --address {chosen.address} {job}   end it: ... {job}"
        " --stop"
    )
    return DONE if chosen.detach else _follow(job, chosen.address)


def _words_of_the_job(chosen: argparse.Namespace, file: Path) -> list[str]:
    words = ["python", "-m", "rayunlearn", "run", file.as_posix(), "--output", shown(chosen.output)]
    for name in (
        "preset",
        "recipe",
        "version",
        "workers",
        "gpus_per_trial",
        "processes_per_trial",
        "on",
    ):
        value, default = getattr(chosen, name), 1 if name == "processes_per_trial" else 0
        words += (
            [f"--{name.replace('_', '-')}", str(value)]
            if value not in ("", None, default, "laptop")
            else []
        )
    return words + (["--set", *chosen.assignments] if chosen.assignments else [])


def _follow(job: str, address: str) -> int:
    from rayunlearn.cluster.submit import follow

    try:
        return follow(job, address, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(
            f"\nthe job goes on; look again with: rayunlearn jobs --address {address} {job}",
            file=sys.stderr,
        )
        return INTERRUPTED


def jobs(chosen: argparse.Namespace) -> int:
    """List, follow or stop."""
    from rayunlearn.cluster import submit as server

    if chosen.stop:
        require(bool(chosen.job), "--stop needs the job's name", chosen.job)
        print(
            "asked to stop" if server.stop(chosen.job, chosen.address) else "it had ended already"
        )
        return DONE
    if chosen.job:
        return _follow(chosen.job, chosen.address)
    for row in server.jobs(chosen.address):
        print(f"{row['job']}  {row['status']:<9}  {row['run']}")
    return DONE


def _add_books(commands: Any) -> None:
    added = _add(
        commands,
        "books",
        books,
        "cut books into a corpus of passages: one book to forget, others to keep, continuations"
        " to ask",
    )
    added.add_argument(
        "source",
        metavar="BOOKS",
        type=Path,
        help="a data file with the columns title and text, or a folder of .txt files",
    )
    added.add_argument("--forget", metavar="TITLE", required=True, help="the book to forget")
    added.add_argument(
        "--retain", metavar="TITLE", nargs="+", required=True, help="the books to keep"
    )
    for name, dest, text in (
        ("--passages", "n_forget", "passages of the forgotten book (default: 120)"),
        ("--retain-passages", "n_retain", "passages of each kept book (default: 30)"),
        ("--words", "n_words", "words of a passage (default: 48)"),
        ("--seed", "seed", "which passages are drawn (default: 0)"),
    ):
        added.add_argument(
            name, dest=dest, metavar="N", type=int, default=argparse.SUPPRESS, help=text
        )
    added.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("runs/books"),
        help="(default: runs/books)",
    )


def run(chosen: argparse.Namespace) -> int:
    """Sweep, print the table, write the report; where the experiment asks for attacks, those then."""
    from rayunlearn.cluster.sweep import sweep
    from rayunlearn.cluster.work import unlearning

    console = _console()
    experiment = _experiment(chosen)
    end_as_ctrl_c_does()
    result = sweep(
        experiment, chosen.output, work=unlearning(), options=_options(chosen), console=console
    )
    if result.statuses:
        _print_table(result.run, console)
    status = conclude(result, chosen.words, console)
    return (
        status
        if status != DONE or not experiment.attacks.panel
        else _attacked(result.run, experiment.attacks, chosen, console)
    )


def _attacked(
    folder: Path, asked: "Attacks", chosen: argparse.Namespace, console: "Console"
) -> int:
    from rayunlearn.attackplan import Reads, planner_of
    from rayunlearn.cluster.work import unlearning

    work = unlearning()
    planner = planner_of(
        folder,
        trials=asked.trials,
        panel=asked.panel,
        reads=Reads(),
        check=work.check,
        identify=work.identify,
    )
    return _carry_out(planner, folder, chosen, console)


def end_as_ctrl_c_does() -> None:
    """Let SIGTERM, which `ray job stop` and a machine that is taken back send, end a sweep as
    Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def conclude(result: "SweepResult", words: Sequence[str], console: "Console") -> int:
    """Print how a sweep ended; returns the exit status."""
    for line in ending(result, words):
        console.print(line, highlight=False, soft_wrap=True)
    if result.interrupted:
        return INTERRUPTED
    return DONE if result.done == result.total else INCOMPLETE


def ending(result: "SweepResult", words: Sequence[str]) -> list[str]:
    """What is done, what is not, and how to go on."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(result.statuses.items()))
    lines = [
        f"{result.done} of {result.total} trials are done ({result.ran} in this call,"
        f" {result.seconds:.0f} s){': ' + counts if counts else ''}"
    ]
    left = result.total - result.done
    if result.interrupted:
        lines.insert(0, "stopped before the end; every trial that had finished is kept")
    if left:
        lines.append(
            f"{left} of {result.total} trials are not done; go on with: {shlex.join(words)}"
        )
    return lines


def plan(chosen: argparse.Namespace) -> int:
    """Number of trials, per role and per cell, what is finished, and what the rest will take."""
    from rayunlearn.cluster.folder import pair_of, run_folder
    from rayunlearn.cluster.sweep import kept_results
    from rayunlearn.cluster.work import unlearning
    from rayunlearn.plan import Planner

    experiment, work = _experiment(chosen), unlearning()
    folder = run_folder(chosen.output, experiment)
    refresh(folder)
    results = {} if experiment.version == "dev" else kept_results(folder, experiment)
    agenda = Planner(experiment, work.check, work.identify).agenda(results)
    pairs = {pair_of(row.trial): row.trial for row in agenda.rows}
    missing = [
        f"{role} of {trial.data.name}"
        for trial in pairs.values()
        for role in work.missing(trial, chosen.output / "cache")
    ]
    _print_plan(agenda, results, experiment, folder, missing=missing, workers=chosen.workers)
    return DONE


def prepare(chosen: argparse.Namespace) -> int:
    """Make what trials start from."""
    from rayunlearn.cluster.sweep import prepare_models
    from rayunlearn.cluster.work import unlearning

    experiment = _experiment(chosen)
    made = prepare_models(
        experiment, chosen.output, work=unlearning(), options=_options(chosen), console=_console()
    )
    print(
        f"{made} models were taught, the others were there already"
        if made
        else "nothing to do: every model is there"
    )
    return DONE


def report(chosen: argparse.Namespace) -> int:
    """The report in one form, from Parquet alone; html with the table on the terminal."""
    from rayunlearn.results.formats import write_as

    folder = brought(chosen.run)
    if chosen.form == "html":
        _print_table(folder, _console())
    else:
        print(write_as(folder, chosen.form))
    return DONE


def show(chosen: argparse.Namespace) -> int:
    """One trial."""
    from rayunlearn.results.terminal import print_trial

    print_trial(brought(chosen.run), chosen.trial, _console())
    return DONE


def frontier(chosen: argparse.Namespace) -> int:
    """The smallest ratio whose forgetting and utility are equivalent to the full set's, per method
    and selector.
    """
    from rayunlearn.results.frontier import Standard, frontier_in_words, frontier_of
    from rayunlearn.results.store import open_run

    standard = Standard(margin=chosen.margin)
    for line in frontier_in_words(frontier_of(open_run(brought(chosen.run)), standard), standard):
        print(line)
    return DONE


def attack(chosen: argparse.Namespace) -> int:
    """A panel of attacks on trials of a run, or on a model that becomes the one trial of a run;
    what has finished is skipped.
    """
    from rayunlearn.attackplan import Reads, only, panel_of, planner_of
    from rayunlearn.cluster.work import unlearning

    require(
        bool(chosen.run) != bool(chosen.model),
        "attack takes either a run folder or --model, got",
        (chosen.run, chosen.model),
    )
    alone = [
        f"--{name}"
        for name in ("base", "gold", "data", "assignments")
        if getattr(chosen, name) and chosen.run
    ]
    require(
        not alone,
        "these go with --model and not with a run, which has its own",
        [name.replace("assignments", "set") for name in alone],
    )
    names = [name.strip() for name in chosen.attacks.split(",")] if chosen.attacks else []
    # a mistake shows here, before an audit measures anything
    only(panel_of(chosen.panel), names)
    work, console = unlearning(), _console()
    chosen.words = ["rayunlearn", *sys.argv[1:]]
    folder = _audited(chosen, console) if chosen.model else brought(chosen.run)
    text, rephrasings = (
        str(Path(file).resolve()) if file else "" for file in (chosen.text, chosen.rephrasings)
    )
    planner = planner_of(
        folder,
        trials="grid" if chosen.model else chosen.trials,
        panel=chosen.panel,
        names=names,
        n_seeds=chosen.seeds,
        curve_points=chosen.curve_points,
        reads=Reads(text=text, rephrasings=rephrasings, chat_model=chosen.chat_model),
        check=work.check,
        identify=work.identify,
    )
    return _carry_out(planner, folder, chosen, console, metric=chosen.metric)


def _carry_out(
    planner: "AttackPlanner",
    folder: Path,
    chosen: argparse.Namespace,
    console: "Console",
    *,
    metric: str = "",
) -> int:
    """Run the plan of attacks, print the matrix, write the report."""
    from rayunlearn.cluster.attack import attack_run
    from rayunlearn.cluster.work import unlearning
    from rayunlearn.finished import cache_of
    from rayunlearn.results.report import write_report
    from rayunlearn.results.store import open_run
    from rayunlearn.results.terminal import print_attacks
    from rayunlearn.results.words import failed_attack_lines

    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    result = attack_run(
        folder,
        planner,
        cache_of(folder),
        work=unlearning(),
        options=_options(chosen),
        console=console,
    )
    opened = open_run(folder)
    print_attacks(opened, console, metric=metric)
    for line in (*failed_attack_lines(opened), f"report: {_named(write_report(folder))}"):
        console.print(line, highlight=False, soft_wrap=True)
    return conclude(result, chosen.words, console)


def explain(chosen: argparse.Namespace) -> int:
    """Heat maps from the run's rows; where there are none, of the trial's weights made again."""
    import polars as pl

    from rayunlearn.results.heatmap import pair_map, trial_maps
    from rayunlearn.results.store import open_run
    from rayunlearn.results.terminal import find_trial, print_heat_map

    folder, console = brought(chosen.run), _console()
    run = open_run(folder)
    trial_id = find_trial(
        run.trials.select("trial_id").collect()["trial_id"].to_list(), chosen.trial
    )
    maps = trial_maps(run, trial_id, chosen.doc)
    if not maps:
        require(
            bool(chosen.doc),
            "--doc must name a question where the run explains nothing (explain.documents 0)",
            chosen.doc,
        )
        from rayunlearn.explanation import looked_into
        from rayunlearn.finished import finished_trial

        made = looked_into(finished_trial(folder, trial_id), chosen.doc)
        maps = [
            pair_map(doc, split, pl.DataFrame(before), pl.DataFrame(after))
            for doc, split, before, after in made
        ]
    for heat in maps:
        print_heat_map(heat, console)
    console.print(
        "blue: supports the right answer, orange: speaks against it; * key token; nats of mean"
        " log p",
        style="dim",
        highlight=False,
    )
    return DONE


def path(chosen: argparse.Namespace) -> int:
    """The line between two trials, and its barriers."""
    from rayunlearn.explanation import between_trials
    from rayunlearn.finished import finished_trial
    from rayunlearn.results.faithfulness import path_section
    from rayunlearn.results.terminal import print_section

    require(chosen.points >= 3, "--points must be >= 3", chosen.points)
    run = brought(chosen.run)
    one, other = (finished_trial(run, wanted) for wanted in (chosen.first, chosen.second))
    rows = between_trials(one, other, points=chosen.points)
    print_section(path_section(rows, one.trial_id, other.trial_id), _console())
    return DONE


def studies(chosen: argparse.Namespace) -> int:
    """The studies as a file, and how to look at it."""
    from rayunlearn.tuning import write_studies

    run = brought(chosen.run)
    file = Path(chosen.output) if chosen.output else run / "studies.db"
    names = write_studies(run, file.resolve())
    print(f"{len(names)} {'study' if len(names) == 1 else 'studies'} in {file}; to look at them:")
    print(f"  pip install optuna-dashboard && optuna-dashboard sqlite:///{file}")
    return DONE


def _audited(chosen: argparse.Namespace, console: "Console") -> Path:
    """The run folder of `--model`, with that model, its base and its gold measured."""
    from rayunlearn.audit import audit_of
    from rayunlearn.cluster.sweep import sweep
    from rayunlearn.cluster.work import unlearning

    data = {"data.name": chosen.benchmark} | ({"data.path": chosen.data} if chosen.data else {})
    experiment = audit_of(
        chosen.model,
        chosen.base,
        chosen.gold,
        data | parse_assignments(chosen.assignments),
        metric=chosen.metric,
    )
    measured = sweep(
        experiment,
        output_place(chosen.output),
        work=unlearning(),
        options=_options(chosen),
        console=console,
    )
    require(
        measured.done == measured.total,
        f"the models must be measured before they are attacked; see {measured.run}; not done",
        measured.total - measured.done,
    )
    return measured.run


def show_list(chosen: argparse.Namespace) -> int:
    """One of the tables."""
    from rayunlearn import catalogue

    printers: Mapping[str, Callable[[Any], None]] = {
        "methods": catalogue.print_methods,
        "recipes": catalogue.print_recipes,
        "selectors": catalogue.print_selectors,
        "extractors": catalogue.print_extractors,
        "metrics": catalogue.print_metrics,
        "attacks": catalogue.print_attacks,
        "experiments": catalogue.print_experiments,
    }
    if chosen.what not in printers:
        raise unknown_name("list", chosen.what, LISTS)
    printers[chosen.what](_console())
    return DONE


def keywords(chosen: argparse.Namespace) -> int:
    """Keywords to Parquet, and those of the first documents on the screen."""
    from rayunlearn.cluster.passes import engines, reporting
    from rayunlearn.extraction import Request, extract_to

    names = (
        "corpus",
        "extractor",
        "output",
        "retain",
        "columns",
        "base",
        "gold",
        "judge",
        "chunk_words",
        "unit",
        "top",
    )
    request = Request(
        **{name: getattr(chosen, name) for name in names},
        options=parse_assignments(chosen.assignments),
    )
    with (
        engines(chosen.engine, chosen.workers, chosen.address) as choose,
        reporting(_console()) as report,
    ):
        done = extract_to(request, choose=choose, report=report, show=chosen.show)
    for doc_id, found in done.first:
        print(
            f"{doc_id} "
            f" {', '.join(f'{text} ({value:.2f})' for text, value in found[:10]) or '(none)'}"
        )
    aside = f", {done.n_aside} set aside" if done.n_aside else ""
    print(f"{done.n_keywords} keywords of {done.n_documents} documents{aside}: {chosen.output}")
    return DONE


def score(chosen: argparse.Namespace) -> int:
    """Scores to Parquet, and their ranges on the screen."""
    from rayunlearn.cluster.passes import engines, reporting
    from rayunlearn.scoring import Request, score_to

    names = ("corpus", "base", "output", "columns", "chunk_words", "unit", "template", "max_tokens")
    scores = tuple(filter(None, chosen.scores.split(",")))
    request = Request(
        **{name: getattr(chosen, name) for name in names},
        scores=scores,
        options=parse_assignments(chosen.assignments),
    )
    with (
        engines(chosen.engine, chosen.workers, chosen.address) as choose,
        reporting(_console()) as report,
    ):
        done = score_to(request, choose=choose, report=report)
    for name, (mean, low, high) in done.ranges.items():
        print(f"{name}: mean {mean:.4g}, {low:.4g} to {high:.4g}")
    aside = f", {done.n_aside} set aside" if done.n_aside else ""
    print(f"{len(done.ranges)} scores of {done.n_documents} documents{aside}: {chosen.output}")
    return DONE


def books(chosen: argparse.Namespace) -> int:
    """A corpus of passages, for data.path."""
    from rayunlearn.data.books import Cut, cut_books

    sizes = {
        name: value
        for name, value in vars(chosen).items()
        if name in ("n_forget", "n_retain", "n_words", "seed")
    }
    rows = cut_books(
        chosen.source,
        Cut(forget=chosen.forget, retain=tuple(chosen.retain), **sizes),
        chosen.output,
    )
    print(f"{', '.join(f'{count} {name}' for name, count in rows.items())}: {chosen.output}")
    probes = "data.probe_forget=probe_forget data.probe_retain=probe_retain"
    print(
        f"use it with --set data.name=files data.path={chosen.output} data.template={{prompt}}"
        f" {probes}"
    )
    return DONE


def evaluate(chosen: argparse.Namespace) -> int:
    """Measure a model on a benchmark, or the harness's tasks, or both; Parquet and a table."""
    import polars as pl

    from rayunlearn.evaluation import Evaluation, Request, write_evaluation
    from rayunlearn.evaluation import evaluate as measure
    from rayunlearn.results.store import frame_of
    from rayunlearn.results.terminal import print_evals

    require(
        bool(chosen.benchmark or chosen.harness),
        "evaluate needs --benchmark or --harness",
        chosen.benchmark,
    )
    names = ("model", "benchmark", "path", "metrics", "gold", "base", "limit")
    done = Evaluation(examples=[], evals=[], about={"model": chosen.model, "limit": chosen.limit})
    if chosen.benchmark:
        request = Request(
            **{name: getattr(chosen, name) for name in names},
            assignments=parse_assignments(chosen.assignments),
        )
        done = measure(request, chosen.output / "cache")
    if chosen.harness:
        from rayunlearn.harness import run_harness

        tasks = [task.strip() for task in chosen.harness.split(",")]
        done.evals.extend(
            run_harness(chosen.model, tasks, include=chosen.harness_tasks, limit=chosen.limit)
        )
        done.about["harness"] = {"tasks": tasks}
    write_evaluation(chosen.output, done)
    print_evals(_console(), frame_of("evals", done.evals).sort(pl.col("split"), pl.col("metric")))
    for note in done.about.get("notes", ()):
        print(f"note: {note}")
    print(f"{len(done.evals)} means of {len(done.examples)} values: {chosen.output}")
    return DONE


def export(chosen: argparse.Namespace) -> int:
    """A trial's model as a directory."""
    from rayunlearn.export import export_trial

    print(
        export_trial(
            brought(chosen.run), chosen.trial, chosen.output, adapter_only=chosen.adapter_only
        )
    )
    return DONE


def _add(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    added.set_defaults(command=command)
    return added


def _add_experiment(
    commands: Any,
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
    *,
    on_cluster: bool = False,
) -> Any:
    added = _add(commands, name, command, text)
    added.add_argument(
        "experiment",
        metavar="EXPERIMENT.py",
        help="experiment file, for example experiments/hello.py",
    )
    added.add_argument(
        "--set",
        dest="assignments",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help=SET_HELP,
    )
    size = (
        "a size that the file's PRESETS names, for example paper (default: laptop, the file as it"
        " stands)"
    )
    added.add_argument("--preset", metavar="NAME", default="laptop", help=size)
    added.add_argument(
        "--recipe",
        metavar="NAME",
        default="",
        help="a published run: see `rayunlearn list recipes`; --set goes over it",
    )
    added.add_argument(
        "--output",
        metavar="DIR|URL",
        default="runs",
        help=(
            "where runs and the cache of models live: a folder or s3://bucket/prefix (default:"
            " runs)"
        ),
    )
    added.add_argument(
        "--version",
        metavar="V",
        help=(
            "version of the run (default: the file's VERSION, else 1); `dev` starts from nothing"
            " every time"
        ),
    )
    added.add_argument(
        "--workers", metavar="N", type=int, default=0, help="trials at once (default: one per CPU)"
    )
    if on_cluster:
        added.add_argument(
            "--address",
            metavar="auto|local|ray://HOST:PORT|HOST:PORT",
            default="auto",
            help=ADDRESS_HELP,
        )
        added.add_argument(
            "--gpus-per-trial",
            metavar="F",
            type=float,
            help=(
                "GPUs a trial takes, fractions share one (default: what the hungriest trial needs)"
            ),
        )
        added.add_argument(
            "--processes-per-trial", metavar="N", type=int, default=1, help=PROCESSES_HELP
        )
        added.add_argument("--on", metavar="RESOURCE", default="", help=ON_HELP)
    return added


# characters of a table that goes to a file or a log: all columns fit
PIPED_WIDTH = 190
SET_HELP = (
    "change a setting: on an axis it replaces the axis, in SEARCH it fixes the value, else it"
    " changes BASE; budget.trials=4 works too"
)
ON_HELP = (
    "trials only on machines with this resource of Ray's, for example accelerator_type:A100"
    " (default: on any)"
)
PROCESSES_HELP = (
    "processes that share one trial, each with a GPU of its own where there are GPUs: batches and"
    " blocks are divided (default: 1)"
)
ADDRESS_HELP = (
    "auto: the cluster of RAY_ADDRESS (a submitted job's own), else a private one on this machine;"
    " local: always private (default: auto)"
)


def _experiment(chosen: argparse.Namespace) -> "Experiment":
    """The experiment with what the command line changes. The words that were given are kept for `go
    on with`.
    """
    from rayunlearn import recipes
    from rayunlearn.experiment import check_measured, load, override

    values = (recipes.values(chosen.recipe) if chosen.recipe else {}) | parse_assignments(
        chosen.assignments
    )
    experiment = load(chosen.experiment, preset=chosen.preset)
    require(chosen.workers >= 0, "--workers must be >= 0", chosen.workers)
    chosen.words = ["rayunlearn", *sys.argv[1:]]
    chosen.output = output_place(chosen.output)
    version = {} if chosen.version is None else {"version": chosen.version}
    changed = override(experiment, values | version)
    check_measured(changed)
    if changed.attacks.panel:
        from rayunlearn.attackplan import panel_of

        panel_of(changed.attacks.panel)
    return changed


def _options(chosen: argparse.Namespace) -> "Options":
    from rayunlearn.cluster.sweep import Options

    processes = getattr(chosen, "processes_per_trial", 1)
    on = getattr(chosen, "on", "")
    return Options(
        address=chosen.address,
        workers=chosen.workers,
        gpus_per_trial=chosen.gpus_per_trial,
        processes=processes,
        on=on,
    )


def _console() -> "Console":
    from rich.console import Console

    wide = Console()
    return wide if wide.is_terminal else Console(width=max(wide.width, PIPED_WIDTH))


def _print_table(folder: Path, console: "Console") -> None:
    from rayunlearn.results.analysis import coreset_table
    from rayunlearn.results.report import write_report
    from rayunlearn.results.store import open_run
    from rayunlearn.results.terminal import (
        print_beside,
        print_control,
        print_coreset_table,
        print_explained,
        print_robustness,
        summary_lines,
    )

    opened = open_run(folder)
    page = write_report(folder)
    print_coreset_table(coreset_table(opened), console, experiment=opened.experiment)
    print_control(opened, console)
    print_beside(opened, console)
    print_explained(opened, console)
    print_robustness(opened, console)
    for line in (*summary_lines(opened), f"report: {_named(page)}"):
        console.print(line, highlight=False, soft_wrap=True)


def _named(page: Path) -> str:
    """Where a page is, and, of one under a URL, where it can be opened here."""
    return str(page) if shown(page) == str(page) else f"{shown(page)} (here: {page})"


def _print_plan(
    agenda: "Agenda",
    results: "dict[str, Result]",
    experiment: "Experiment",
    folder: Path,
    *,
    missing: Sequence[str],
    workers: int,
) -> None:
    from rayunlearn.catalogue import print_cells
    from rayunlearn.estimate import cells_of

    console = _console()
    print_cells(cells_of(agenda, results, budget=experiment.budget), console)
    left = agenda.total - len({row.trial_id for row in agenda.rows} & set(results))
    lines = [
        f"{agenda.total} trials: {agenda.total - left} finished, {left} to run in {shown(folder)}"
    ]
    if agenda.waiting:
        lines.append(
            f"{agenda.waiting} of them wait for the tuning ({experiment.budget.tuning},"
            f" {experiment.budget.trials} trials per group)"
        )
    lines.append(
        f"models to teach first: {', '.join(missing)}"
        if missing
        else "every model is there already"
    )
    if experiment.attacks.panel:
        lines.append(
            f"then the attacks of panel {experiment.attacks.panel} on {experiment.attacks.trials},"
            " which are not in these numbers"
        )
    lines += _cost_lines(agenda, folder, left, workers or len(os.sched_getaffinity(0)))
    for line in (*lines, *(f"note: {note}" for note in agenda.notes)):
        console.print(line, highlight=False, soft_wrap=True)


def _cost_lines(agenda: "Agenda", folder: Path, left: int, workers: int) -> list[str]:
    from rayunlearn.cluster.progress import duration
    from rayunlearn.estimate import DRIVER_BYTES, GPU_RULE, estimate, gpu_hours, size_of

    try:
        guess, room = estimate(folder, agenda, size_of=size_of), _room_words(agenda, folder)
    except UserError as error:
        return [f"no estimate: {error}"]
    hours = gpu_hours(agenda, left, size_of=size_of)
    memory = f"about {(workers * guess.bytes + DRIVER_BYTES) / 2**30:.1f} GiB"
    time = (
        f"with {workers} workers {duration(left * guess.seconds / workers)} and {memory}"
        f" ({guess.seconds:.1f} s per trial, from {guess.source})"
    )
    return [time, f"on GPUs about {hours:.2g} GPU-hours of training ({GPU_RULE})", room]


def _room_words(agenda: "Agenda", folder: Path) -> str:
    """What a trial takes of this machine's GPU; without one, what it would need of any."""
    from rayunlearn.estimate import gpu_share, gpu_words
    from rayunlearn.models.memory import device_bytes
    from rayunlearn.room import room_of

    room, there = (
        room_of([row.trial for row in (*agenda.rows, *agenda.expected)], folder),
        device_bytes(),
    )
    return gpu_share(room, there)[1] if there else f"on a GPU a trial needs {gpu_words(room)}"
