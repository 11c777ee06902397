"""The tables of docs/performance.md, from the Parquet files of the benchmarks.

    python -m benchmarks.page [FOLDER] [PAGE]

FOLDER (default: build/benchmarks) is copied to benchmarks/measured, so that the page can be made
again from what the repository has; then every block of PAGE between `<!-- table NAME -->` and
`<!-- end -->` becomes the table of NAME.parquet. A block whose file is not there stays. Nothing in
a block is written by hand: tests/test_docs.py makes the page again and compares.
"""

import argparse
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

MEASURED = Path(__file__).parent / "measured"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BLOCK = re.compile(r"<!-- table ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
Rows = Sequence[Mapping[str, Any]]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured_on(rows: Rows) -> str:
    """The sentence under a table: when, where, at which commit."""
    first = rows[0]
    repeats = f", {first['repeats']} repeats" if "repeats" in first else ""
    return (
        f"{first['date']}, commit {first['commit']}, {first['machine']}, load {first['load']:g}"
        f" when it began{repeats}."
    )


def steps(rows: Rows) -> str:
    """One line per method, its models side by side, the best ratio first."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    by_case: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["case"], {})[row["model"]] = row
    heads = ["method"]
    for model in models:
        heads += [f"{model}: plain / ours, CPU ms", "ratio of pairs", "of the least"]
    lines = [
        [case, *(cell for model in models for cell in _step_cells(of_case.get(model)))]
        for case, of_case in sorted(
            by_case.items(), key=lambda item: min(r["ratio_of_pairs"] for r in item[1].values())
        )
    ]
    slower = [
        f"{row['case']} on {row['model']} ({row['ratio_of_pairs']:.2f})"
        for row in rows
        if row["ratio_of_pairs"] > 1
    ]
    said = f"Slower than the plain way: {', '.join(slower) or 'none'}."
    largest = max(row["loss_difference"] for row in rows)
    said += f" Losses differ by at most {largest:.0e} of their size."
    return "\n\n".join((table(heads, lines), f"{said} {measured_on(rows)}"))


def _step_cells(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["-"] * 3
    times = f"{row['plain_cpu'] * 1e3:.0f} / {row['ours_cpu'] * 1e3:.0f}"
    return [times, f"{row['ratio_of_pairs']:.2f}", f"{row['ratio_cpu']:.2f}"]


def commits(rows: Rows) -> str:
    """One line per model and method."""
    lines = [
        [
            row["model"],
            row["case"],
            f"{row['then_cpu'] * 1e3:.0f} / {row['now_cpu'] * 1e3:.0f}",
            f"{row['ratio_of_pairs']:.2f}",
            f"{row['loss_difference']:.0e}",
        ]
        for row in sorted(rows, key=lambda row: row["ratio_of_pairs"])
    ]
    then = rows[0]["commit_then"]
    slower = [row["case"] for row in rows if row["ratio_of_pairs"] > 1]
    heads = ["model", "method", f"{then} / now, CPU ms", "ratio of pairs", "losses differ by"]
    said = f"Slower than {then}: {', '.join(slower) or 'none'}. {measured_on(rows)}"
    return "\n\n".join((table(heads, lines), said))


def scores(rows: Rows) -> str:
    """One line per kind of score."""
    lines = [
        [
            row["scores"],
            row["size"],
            f"{row['documents'] / row['plain_cpu']:.0f}",
            f"{row['documents'] / row['ours_cpu']:.0f}",
            f"{row['ratio_cpu']:.2f}",
            f"{row['difference']:.0e}",
        ]
        for row in rows
    ]
    heads = ["scores", "model", "plain, documents/s", "ours", "CPU ratio", "largest difference"]
    return "\n\n".join((table(heads, lines), measured_on(rows)))


def latency(rows: Rows) -> str:
    """One line per command."""
    lines = [
        [
            f"`{row['command']}`",
            f"{row['cpu_seconds']:.1f}",
            f"{row['aim_seconds']:g}",
            "met" if row["cpu_seconds"] <= 1.25 * row["aim_seconds"] else "**not met**",
            f"{row['before_seconds']:g}",
        ]
        for row in rows
    ]
    heads = ["command", "CPU s", "aim", "within a quarter of it", "before"]
    return "\n\n".join((table(heads, lines), measured_on(rows)))


def memory(rows: Rows) -> str:
    """One line per way and step, with what the step adds."""
    lines, before = [], {"plain": 0.0, "ours": 0.0}
    for row in rows:
        added = row["peak_mb"] - before[row["way"]]
        before[row["way"]] = row["peak_mb"]
        lines.append([row["way"], row["step"], f"{row['peak_mb']:.0f}", f"+{added:.0f}"])
    said = f"The peer's process took {rows[0]['peer_mb']:.0f} MB. {measured_on(rows)}"
    return "\n\n".join((table(["way", "after", "peak MB", "the step adds"], lines), said))


def caches(rows: Rows) -> str:
    """One line per model and cache."""
    lines = [
        [
            row["model"],
            row["cache"],
            f"{row['bytes'] / 1e6:.2f} MB",
            f"{row['make_cpu']:.1f} s",
            f"{row['read_cpu']:.2f} s",
            f"{row['saved_cpu_per_step'] * 1e3:.0f} ms",
            f"{row['steps_to_break_even']:.0f} steps, {row['trials_to_break_even']:.2f} trials",
        ]
        for row in rows
    ]
    heads = ["model", "cache", "size", "made in", "read and checked in", "saves per step"]
    return "\n\n".join((table([*heads, "paid after"], lines), measured_on(rows)))


TABLES: dict[str, Callable[[Rows], str]] = {
    "engine-steps": steps,
    "commits": commits,
    "scores-tiny": scores,
    "scores-small": scores,
    "latency": latency,
    "memory": memory,
    "engine-caches": caches,
}


def made(page: str, folder: Path) -> str:
    """The page with every block made from the files of the folder."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        file = folder / f"{name}.parquet"
        if not file.exists():
            return match[0]
        rows = pl.read_parquet(file).to_dicts()
        return f"<!-- table {name} -->\n{TABLES[name](rows)}\n<!-- end -->"

    return BLOCK.sub(block, page)


def main() -> None:
    """Take the files, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    options = parser.parse_args()
    MEASURED.mkdir(exist_ok=True)
    for name in TABLES:
        file = options.folder / f"{name}.parquet"
        if file.exists() and file.parent.resolve() != MEASURED.resolve():
            shutil.copyfile(file, MEASURED / file.name)
    text = options.page.read_text(encoding="utf-8")
    options.page.write_text(made(text, MEASURED), encoding="utf-8")


if __name__ == "__main__":
    main()
