"""Coverage-guided fuzzing of what reads other people's files: `python -m tests.fuzz_readers TARGET
SECONDS [FOLDER]`; needs atheris.

TARGET is settings, documents or run. Every input ends as a value or as the error that our readers
promise; anything else stops the fuzzer, and the input that did it is kept in FOLDER (libFuzzer's
crash-* file). tests/test_hostile_inputs.py holds the cases that were found.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

from rayunlearn import schema

with atheris.instrument_imports(
    include=[
        "rayunlearn.config",
        "rayunlearn.data",
        "rayunlearn.storage.run",
        "rayunlearn.storage.parquet_guard",
    ]
):
    import polars as pl
    import pyarrow
    import pyarrow.parquet

    from rayunlearn.config import Trial, flatten, parse_assignments, with_values
    from rayunlearn.corpus.partitions import columns_of, documents_of, partitions_of
    from rayunlearn.data.readers import read_file
    from rayunlearn.data.rows import to_documents
    from rayunlearn.errors import UserError
    from rayunlearn.storage import run as run_module

KINDS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
COLUMNS = {"answer": "answer", "prompt": "prompt", "facts": "facts"}
Target = Callable[[bytes], None]


def settings(_: Path) -> tuple[Target, list[bytes]]:
    """`NAME=VALUE` words, one to a line."""

    def target(data: bytes) -> None:
        with suppress(UserError):
            with_values(
                Trial(), parse_assignments(data.decode("utf-8", "surrogateescape").split("\n"))
            )

    return target, [
        b"select.ratio=0.05\ntrain.layers=1,2",
        b"method.forget=rmu\nrmu.steering=6.5",
        b"data.path=a b\ndata.columns=answer=text",
    ]


def documents(folder: Path) -> tuple[Target, list[bytes]]:
    """The first byte says what ending the rest is given; read whole, then in pieces."""

    def target(data: bytes) -> None:
        file = folder / f"data{KINDS[data[0] % len(KINDS)] if data else '.txt'}"
        file.write_bytes(data[1:])
        try:
            if file.suffix != ".txt":
                to_documents(read_file(file), COLUMNS)
            pieces = partitions_of(str(file), piece_bytes=64)
            columns = columns_of(pieces, "")
            for piece in pieces:
                documents_of(piece, columns)
        except UserError:
            pass

    row = {"answer": "blue", "prompt": "What colour?", "facts": ["sky"]}
    table = folder / "seed.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"answer": ["blue", "red"], "prompt": ["What?", ""]}), table
    )
    seeds = [
        json.dumps(row) + "\n" + json.dumps(row),
        json.dumps([row]),
        'answer,prompt\n"a ""b""",c\n',
    ]
    return target, [
        *(bytes([at]) + text.encode() for at, text in enumerate(seeds)),
        b"\x03" + table.read_bytes(),
        b"\x04a\n\nb",
    ]


def run(folder: Path) -> tuple[Target, list[bytes]]:
    """A run of which one file is what the fuzzer says: the first byte tells which."""
    place = folder / "run"
    for name in ("a", "b"):
        rows = {"trials": [{"status": "complete"}], "evals": [{"metric": "m", "value": 0.5}]}
        run_module.write_trial(place, name, rows, flatten(Trial()))
    run_module.compact(place)
    run_module.write_trial(place, "c", {"trials": [{"status": "complete"}]}, flatten(Trial()))
    run_module.write_experiment(place, {"name": "small", "question": "?"})
    files = sorted(path for path in place.rglob("*") if path.is_file())
    whole = {file: file.read_bytes() for file in files}

    def target(data: bytes) -> None:
        file = files[data[0] % len(files)] if data else files[0]
        file.write_bytes(data[1:])
        try:
            opened = run_module.open_run(place)
            for table in (*schema.PER_TRIAL, *run_module.RUN_TABLES):
                getattr(opened, table).collect()
        # as in tests/test_hostile_inputs.py
        except (UserError, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
            pass
        finally:
            file.write_bytes(whole[file])

    return target, [bytes([at]) + whole[file] for at, file in enumerate(files)]


TARGETS = {"settings": settings, "documents": documents, "run": run}


def main(name: str, seconds: str, kept: str) -> None:
    """Fuzz one target for so long; ends with libFuzzer's own exit status, 0 where nothing was
    found.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        target, seeds = TARGETS[name](folder)
        corpus = folder / "corpus"
        corpus.mkdir()
        for at, seed in enumerate(seeds):
            (corpus / str(at)).write_bytes(seed)
        largest = 2 * max(map(len, seeds))
        options = [
            f"-max_total_time={seconds}",
            f"-artifact_prefix={kept}/",
            f"-max_len={largest}",
            "-len_control=0",
            "-rss_limit_mb=4096",
            "-timeout=60",
            "-verbosity=1",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], target)
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ".")
