"""What a command costs that has little to do: CPU seconds of its process.

    python -m benchmarks.latency [--repeats 3]

`list methods`, `plan`, `show` of a trial and a second `run` with nothing left, each a process of
its own; user and system time, the least of the repeats, all commands in turn. The run that `show`
and `run` look at is made first: one short trial on a model that is built and trained there for an
epoch.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.provenance import provenance
from benchmarks.trials import EXPERIMENT, VALUES
from rayunlearn.storage.run import open_run

ROOT = Path(__file__).parents[1]
# CPU seconds, and before libraries were loaded at their first use
AIMS = {"list": 1.0, "plan": 2.5, "show": 0.8, "run": 3.0}
BEFORE = {"list": 8.0, "plan": 8.1, "show": 1.2, "run": 9.5}


def measured(arguments: list[str], folder: Path) -> float:
    """CPU seconds of a command. Raises SystemExit where it fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rayunlearn", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"rayunlearn {' '.join(arguments)} failed")
    return usage.ru_utime + usage.ru_stime


def latency_rows(repeats: int) -> list[dict[str, Any]]:
    """One row per command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "short.py"
        values = VALUES | {"model.teach": True, "model.teach_epochs": 1}
        file.write_text(EXPERIMENT.format(values=values, rates=(1e-4,)), encoding="utf-8")
        measured(["run", str(file), "--workers", "1"], folder)
        plan = open_run(folder / "runs/short/1").plan.filter(pl.col("role") == "grid").collect()
        (trial,) = plan["trial_id"].unique().to_list()
        commands = {
            "list": ["list", "methods"],
            "plan": ["plan", str(ROOT / "experiments/hello.py")],
            "show": ["show", "runs/short/1", trial],
            "run": ["run", str(file), "--workers", "1"],
        }
        taken: dict[str, list[float]] = {command: [] for command in commands}
        # the first round compiles modules
        for repeat in range(repeats + 1):
            for command, arguments in commands.items():
                once = measured(arguments, folder)
                taken[command] += [once] if repeat else []
    return [
        {
            "command": " ".join(("rayunlearn", *arguments[:1])),
            "cpu_seconds": min(taken[command]),
            "aim_seconds": AIMS[command],
            "before_seconds": BEFORE[command],
        }
        | provenance()
        for command, arguments in commands.items()
    ]


def main() -> None:
    """Print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    rows = latency_rows(options.repeats)
    for row in rows:
        print(f"{row['command']:18} {row['cpu_seconds']:5.2f} s CPU (aim {row['aim_seconds']:g})")
    options.output.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(options.output / "latency.parquet")


if __name__ == "__main__":
    main()
