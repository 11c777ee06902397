"""A step of every method now beside one of an earlier commit: two processes that step in turn.

    python -m benchmarks.commits [COMMIT] [--models 12m,thin32] [--methods npo,rmu] [--repeats 3]

The commit is checked out into a folder of its own, and each process runs the engine of its own
tree. CPU time of the process that steps; the ratio of a pair is now / then, and the median over the
pairs counts, as both then meet what else the machine does. One thread.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.engine import CASES, chosen_cases
from benchmarks.provenance import provenance

ROOT = Path(__file__).parents[1]
# the commit before passes were packed, whose times the aims of docs/performance.md are taken from
BEFORE_PACKING = "d8b9f5e"
STEPPER = """
import sys, tempfile, time
from pathlib import Path
import torch
from benchmarks import engine
from benchmarks.engine import CASES, build, our_loss, stepping
torch.set_num_threads(1)
cases = {case.name: case for case in CASES}
choose_parameters = engine.choose_parameters
for line in sys.stdin:
    if line.startswith("case "):
        _, model_name, batch_size, name = line.rstrip("\\n").split(" ", 3)
        folder = tempfile.TemporaryDirectory()
        engine.choose_parameters = choose_parameters
        model = build(model_name, torch.device("cpu"))
        loss = our_loss(cases[name], model, Path(folder.name), int(batch_size))
        step = stepping(model, loss, cases[name].parameters, plain=False)
        # earlier benchmarks chose the parameters again at every step, which no trial did
        engine.choose_parameters = lambda *_: None
        print("ready", flush=True)
        continue
    began = time.process_time()
    value = step()
    print(time.process_time() - began, value, flush=True)
"""


@contextmanager
def stepper(tree: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that steps with the code of `tree` when it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", STEPPER],
        cwd=tree,
        env={"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


def asked(process: subprocess.Popen[str], line: str) -> list[str]:
    """What the process answers to a line. Raises SystemExit where it ended."""
    to, back = process.stdin, process.stdout
    assert to is not None and back is not None
    to.write(f"{line}\n")
    to.flush()
    answer = back.readline().split()
    if not answer:
        raise SystemExit(f"a process ended at {line!r} (its words are above)")
    return answer


def pair_rows(
    commit: str, models: list[str], methods: str, *, repeats: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """One row per model and method that both commits have."""
    with checked_out(commit) as tree, stepper(tree) as then, stepper(ROOT) as now:
        for model in models:
            for case in chosen_cases(methods):
                for process in (then, now):
                    asked(process, f"case {model} {batch_size} {case.name}")
                pairs = [(asked(then, "step"), asked(now, "step")) for _ in range(repeats + 1)]
                # the first step fills caches
                counted = [(float(a[0]), float(b[0])) for a, b in pairs[1:]]
                losses = [float(answer[1]) for answer in pairs[-1]]
                yield {
                    "model": model,
                    "case": case.name,
                    "commit_then": commit,
                    "then_cpu": min(a for a, _ in counted),
                    "now_cpu": min(b for _, b in counted),
                    "ratio_of_pairs": statistics.median(b / a for a, b in counted),
                    "loss_difference": abs(losses[1] - losses[0]) / max(1e-12, abs(losses[0])),
                    "repeats": repeats,
                }


def main() -> None:
    """Print the ratios and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", default=BEFORE_PACKING)
    parser.add_argument("--models", default="12m,thin32")
    parser.add_argument("--methods", default="", help=f"of {len(CASES)} cases; '' runs all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    rows = []
    for row in pair_rows(
        options.commit,
        options.models.split(","),
        options.methods,
        repeats=options.repeats,
        batch_size=options.batch_size,
    ):
        rows.append(row | provenance())
        print(
            f"{row['model']:7} {row['case']:36} now / then {row['ratio_of_pairs']:.2f}"
            f" ({row['now_cpu'] * 1e3:.0f} / {row['then_cpu'] * 1e3:.0f} ms CPU), losses differ by"
            f" {row['loss_difference']:.0e}",
            flush=True,
        )
        # a run that is broken off leaves what it has
        options.output.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(rows).write_parquet(options.output / "commits.parquet")


if __name__ == "__main__":
    main()
