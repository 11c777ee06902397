"""What the platform itself costs, without any model: trials that do nothing on simulated machines,
and tables of many rows.

    python -m benchmarks.cluster [--parts trials,long,rows] [--workers 1 2 4] [--trials 400] [--long
    10000] [--rows 1000000 10000000 100000000]

- trials: trials per hour, and the pause between two trials of a worker, on a Ray cluster of 1, 2
  and 4 simulated machines of one CPU
- long: one sweep of many trials on the largest of these clusters: seconds per trial and the
  driver's memory, at its beginning and its end
- rows: seconds and peak memory of compaction and of three queries over the table `examples`

A trial writes its row (seven Parquet files, each fsynced) and does nothing else. Every measurement
is a process of its own. Results are written to build/benchmarks/cluster.parquet. More machines than
cores of this one share its cores.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rayunlearn.schema import TABLES, VERSION
from rayunlearn.storage.parquet import KINDS, VERSION_KEY
from rayunlearn.storage.run import compact, open_run, write_trial
from tests.cluster_of_nodes import Sweep, machines, starts, sweep_on

ROOT = Path(__file__).parents[1]
ROWS_PER_TRIAL = 10_000
# trials that are compacted into a table of many
N_FOLDERS = 10
N_DOCUMENTS = 2_000
# between two looks at the driver
LOOK_SECONDS = 0.5
# of these looks
SHOWN = 12


def main() -> int:
    """Measure what was asked for, print it and keep it."""
    chosen = parser().parse_args()
    if chosen.process:
        print(json.dumps(PROCESSES[chosen.process](*chosen.arguments)))
        return 0
    rows: list[dict[str, Any]] = []
    parts = chosen.parts.split(",")
    if "trials" in parts:
        rows += [
            of_a_sweep("trials", n_workers, chosen.trials, 60 * chosen.minutes)
            for n_workers in chosen.workers
        ]
    if "long" in parts:
        rows.append(of_a_sweep("long", max(chosen.workers), chosen.long, 60 * chosen.minutes))
    if "rows" in parts:
        rows += [row for n_rows in chosen.rows for row in of_a_table(n_rows)]
    target = ROOT / "build/benchmarks/cluster.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(target)
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--parts", default="trials,long,rows", help="which, separated by commas")
    top.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="simulated machines")
    top.add_argument(
        "--trials", type=int, default=400, help="about so many in each of the short sweeps"
    )
    top.add_argument("--long", type=int, default=10_000, help="about so many in the long one")
    top.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[10**6, 10**7, 10**8],
        help="of `examples`; 100 M take 0.7 GiB of disk and half a minute",
    )
    top.add_argument(
        "--minutes",
        type=float,
        default=15.0,
        help="of one sweep; a longer one is stopped and what ran is reported",
    )
    top.add_argument("--process", default="", help=argparse.SUPPRESS)
    top.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    return top


# ---- sweeps


def of_a_sweep(part: str, n_workers: int, n_trials: int, seconds: float) -> dict[str, Any]:
    """One row: a sweep of trials that do nothing on `n_workers` machines."""
    # as the experiment of tests/fake_driver.py is built
    n_seeds = max(1, round((n_trials - 8) / 6))
    with (
        tempfile.TemporaryDirectory() as folder,
        machines(n_workers) as there,
        sweep_on(there, Path(folder) / "runs", 0.0, n_seeds) as sweep,
    ):
        begun = time.time()
        looks = watched(sweep, seconds)
        started = starts(sweep.run)
    moments = np.sort([float(line[2]) for line in started])
    of_workers = [
        np.sort([float(line[2]) for line in started if line[1] == pid])
        for pid in {line[1] for line in started}
    ]
    # the first few: Ray is still starting workers
    pauses = np.concatenate([np.diff(one)[3:] for one in of_workers])
    quarter = len(moments) // 4
    settled = [at for at in looks if at["trials"] >= quarter] or looks
    row = {
        "part": part,
        "workers": n_workers,
        "trials": len(moments),
        "seconds": time.time() - begun,
        "seconds_to_first": moments[0] - begun,
        "trials_per_hour": 3600 * len(moments[quarter:]) / (moments[-1] - moments[quarter]),
        "seconds_per_trial_second_quarter": float(np.diff(moments[quarter : 2 * quarter]).mean()),
        "seconds_per_trial_last_quarter": float(np.diff(moments[-quarter:]).mean()),
        "pause_median": float(np.median(pauses)),
        "pause_95": float(np.quantile(pauses, 0.95)),
        "driver_mib_first": settled[0]["bytes"] / 2**20,
        "driver_mib_last": settled[-1]["bytes"] / 2**20,
    }
    print(row, flush=True)
    shown = [
        (o["trials"], round(o["at"], 1), round(o["bytes"] / 2**20))
        for o in looks[:: max(1, len(looks) // SHOWN)]
    ]
    print("  trials begun, seconds, MiB of the driver:", shown, flush=True)
    return row


def watched(sweep: Sweep, seconds: float) -> list[dict[str, float]]:
    """What could be seen of the sweep's driver, twice a second, until it ended by itself or was
    interrupted after `seconds`.
    """
    looks: list[dict[str, float]] = []
    process, begun = sweep.start().process, time.monotonic()
    while process.poll() is None:
        at = time.monotonic() - begun
        looks.append(
            {"at": at, "trials": len(starts(sweep.run)), "bytes": resident_bytes(str(process.pid))}
        )
        if at > seconds:
            process.send_signal(signal.SIGINT)
            sweep.driver.ended()
        time.sleep(LOOK_SECONDS)
    return looks


def resident_bytes(process: str = "self") -> int:
    """Resident memory of a process now, 0 where it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


# ---- tables


def of_a_table(n_rows: int) -> list[dict[str, Any]]:
    """Rows for one size: compaction and each query."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        process("make", folder, n_rows)
        size = (Path(folder) / "run/tables/examples.parquet").stat().st_size
        for name in ("compacted", "mean", "documents", "one"):
            row = {
                "part": "rows",
                "rows": n_rows,
                "what": name,
                "file_mib": size / 2**20,
                **process("timed", folder, name),
            }
            print(row, flush=True)
            found.append(row)
    return found


def make(folder: str, n_rows: str) -> dict[str, Any]:
    """A run with a compacted table `examples` of so many rows, and a few trials more that are still
    folders.
    """
    run = Path(folder) / "run"
    for at in range(N_FOLDERS):
        write_trial(
            run,
            f"new{at}",
            {
                "trials": [{"status": "complete"}],
                "examples": block(f"new{at}", at).drop("trial_id").to_dicts(),
            },
            {},
        )
    pieces = pl.concat(
        [block(f"t{at:08d}", at).lazy() for at in range(min(50, int(n_rows) // ROWS_PER_TRIAL))]
    ).collect()
    n_pieces = max(1, int(n_rows) // pieces.height)
    path = run / "tables/examples.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    renamed = [
        pieces.lazy().with_columns(pl.col("trial_id") + f"-{at:04d}") for at in range(n_pieces)
    ]
    pl.concat(renamed).sink_parquet(path, metadata={VERSION_KEY: str(VERSION)})
    return {"rows": n_pieces * pieces.height}


def block(trial_id: str, seed: int) -> pl.DataFrame:
    """One trial's rows of `examples`: metrics of documents, the values random."""
    rng = np.random.default_rng(seed)
    at = np.arange(ROWS_PER_TRIAL)
    names: dict[str, pl.Expr | pl.Series] = {
        "trial_id": pl.lit(trial_id),
        "stage": pl.lit("unlearned"),
        "attack": pl.lit("none"),
        "doc_id": pl.Series([f"{n:016x}" for n in at % N_DOCUMENTS]),
        "split": pl.Series(np.where(at % N_DOCUMENTS < N_DOCUMENTS // 2, "forget", "retain")),
        "metric": pl.Series([f"metric_{n}" for n in at // N_DOCUMENTS]),
        "value": pl.Series(rng.random(ROWS_PER_TRIAL)),
    }
    missing = pl.lit(None)
    return pl.select(
        names.get(column.name, missing).cast(getattr(pl, KINDS[column.kind])).alias(column.name)
        for column in TABLES["examples"]
    )


def timed(folder: str, what: str) -> dict[str, Any]:
    """Seconds and CPU seconds (of all cores) of one thing done with the table, and this process's
    peak memory over what it had before.
    """
    run = Path(folder) / "run"
    before, begun, cpu = resident_bytes(), time.perf_counter(), time.process_time()
    height = QUERIES[what](run)
    taken = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return taken | {"peak_mib": (peak - before) / 2**20, "result": height}


def compacted(run: Path) -> int:
    """Move ten trials of 10,000 rows into the table."""
    compact(run)
    return N_FOLDERS


def mean(run: Path) -> int:
    """The mean of every metric and split of every trial."""
    grouped = (
        open_run(run).examples.group_by("trial_id", "split", "metric").agg(pl.col("value").mean())
    )
    return int(grouped.collect(engine="streaming").height)


def documents(run: Path) -> int:
    """Which documents are forgotten least, over all trials."""
    forget = open_run(run).examples.filter(
        pl.col("split") == "forget", pl.col("metric") == "metric_0"
    )
    return int(
        forget.group_by("doc_id")
        .agg(pl.col("value").mean(), pl.col("value").std().alias("spread"))
        .collect(engine="streaming")
        .height
    )


def one(run: Path) -> int:
    """All rows of one trial."""
    return int(
        open_run(run)
        .examples.filter(pl.col("trial_id") == "t00000003-0000")
        .collect(engine="streaming")
        .height
    )


QUERIES: dict[str, Callable[[Path], int]] = {
    query.__name__: query for query in (compacted, mean, documents, one)
}


# ---- processes


def process(name: str, *arguments: object) -> dict[str, Any]:
    """What a process of its own found."""
    words = [sys.executable, "-m", "benchmarks.cluster", "--process", name, *map(str, arguments)]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


PROCESSES: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "timed": timed}

if __name__ == "__main__":
    sys.exit(main())
