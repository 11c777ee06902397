"""Bit flips, truncations and losses over every stored file of a small run and its cache: the right
numbers, a repair, or one clear line; never another number and never a traceback.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.errors import UserError
from rayunlearn.models.load import load_model
from rayunlearn.models.tensor_cache import TENSORS
from rayunlearn.schema import PER_TRIAL, RUN_TABLES
from rayunlearn.storage import artifact_cache
from rayunlearn.storage.artifact_cache import (
    JSON,
    TABLE,
    FileType,
    cached_file,
    cached_folder,
    entries,
    manifest_of,
    read_manifest,
)
from rayunlearn.storage.parquet import frame_of
from rayunlearn.storage.run import compact, open_run
from tests import synthetic

Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, draw: random.Random) -> bytes:
    """One bit."""
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    """The end cut off, at most everything."""
    return content[: draw.randrange(len(content))]


DAMAGES: tuple[Damage, ...] = (flip, flip, flip, cut)


def one_line(error: UserError) -> bool:
    return "\n" not in str(error).strip() and len(str(error)) > 20


# ---- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trials of two selectors, half of them compacted."""
    folder = tmp_path_factory.mktemp("fuzzed") / "run"
    whole = synthetic.write_run(tmp_path_factory.mktemp("whole") / "run")
    plan = open_run(whole).plan.collect()
    for at, selector in enumerate(("random", "min_k")):
        for seed in (0, 1):
            changes = {"select.name": selector, "select.ratio": 0.25, "train.seed": seed}
            synthetic.add_trial(folder, changes, {"forget": 0.2 + at / 4, "retain": 0.9})
        if not at:
            compact(folder)
    synthetic.add_trial(folder, {"stage": "base"}, {"forget": 0.9, "retain": 0.9})
    ids = open_run(folder).trials.select("trial_id").collect()["trial_id"].to_list()
    synthetic.write_run_table(
        folder, "plan", [plan.row(0, named=True) | {"trial_id": name} for name in ids]
    )
    synthetic.write_run_table(folder, "quarantine", [{"source": "a", "row": 1, "reason": "empty"}])
    synthetic.write_experiment(folder, synthetic.EXPERIMENT)
    return folder


def numbers_of(run: Path) -> tuple[object, ...]:
    """Every row of a run, and what is made of them."""
    opened = open_run(run)
    tables = [getattr(opened, name).collect().to_dicts() for name in (*PER_TRIAL, *RUN_TABLES)]
    return repr(tables), repr(coreset_table(opened).to_dicts()), json.dumps(opened.experiment)


def run_files(run: Path) -> list[Path]:
    return sorted(file for file in run.rglob("*") if file.is_file())


def attack_run_files(run: Path, n_cases: int, seed: int) -> Counter[str]:
    """How `n_cases` damages end, the files in turn."""
    right, ends, draw = numbers_of(run), Counter[str](), random.Random(seed)
    files = run_files(run)
    for case in range(n_cases):
        file = files[case % len(files)]
        content = file.read_bytes()
        file.write_bytes(DAMAGES[case // len(files) % len(DAMAGES)](content, draw))
        try:
            assert numbers_of(run) == right, (file, case)
            ends["right numbers"] += 1
        except UserError as error:
            assert one_line(error), error
            ends["one line"] += 1
        finally:
            file.write_bytes(content)
    assert numbers_of(run) == right
    return ends


def test_a_damaged_file_of_a_run_is_said_and_never_another_number(run: Path) -> None:
    ends = attack_run_files(run, 2 * len(run_files(run)), seed=0)
    assert ends.total() == ends["one line"]


def test_a_file_that_is_gone_is_said(run: Path) -> None:
    for file in run_files(run):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(UserError) as caught:
            numbers_of(run)
        assert one_line(caught.value) and file.name in str(caught.value)
        file.write_bytes(content)


# ---- a cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, untaught_models: Path) -> Path:
    """An entry of every kind: a model, tensors, a table of scores, rows as JSON."""
    import torch

    folder = tmp_path_factory.mktemp("cache")
    model = untaught_models / "base"
    cached_folder(folder / "models/a/base", {"start": "a"}, lambda to: _copy(model, to))
    values = torch.arange(100.0)
    cached_file(folder / "reference", {"what": "b"}, lambda: {"token_nll": values}, TENSORS)
    rows = [{"doc_id": f"d{at}", "value": at / 7} for at in range(50)]
    cached_file(folder / "scores", {"what": "c"}, lambda: frame_of("scores", rows), TABLE)
    cached_file(folder / "evaluations", {"what": "d"}, lambda: rows, JSON)
    return folder


def _copy(model: Path, folder: Path) -> None:
    shutil.copytree(model, folder)


def value_of(path: Path) -> str:
    """What an entry holds, in numbers."""
    if path.is_dir():
        model, tokenizer = load_model(str(path))
        return repr([sorted(tokenizer.get_vocab().items()), *_sums(model.state_dict())])
    kinds: dict[str, FileType[Any]] = {t.suffix: t for t in (JSON, TABLE, TENSORS)}
    value = kinds[path.suffix].read(path)
    if isinstance(value, pl.DataFrame):
        return repr(value.to_dicts())
    return repr(_sums(value) if path.suffix == TENSORS.suffix else value)


def _sums(tensors: Any) -> list[tuple[str, bytes]]:
    return [(name, tensors[name].contiguous().numpy().tobytes()) for name in sorted(tensors)]


def asked_again(path: Path, whole: Path) -> str:
    """What a trial gets that wants the entry, which is made from its copy `whole` where it is
    wrong.
    """
    manifest = read_manifest(whole)
    assert not isinstance(manifest, str)
    key = json.loads(manifest.key)
    if path.is_dir():

        def made(folder: Path) -> None:
            _copy(whole, folder)
            (folder / artifact_cache.MANIFEST).unlink()

        return value_of(cached_folder(path, key, made))
    kinds: dict[str, FileType[Any]] = {t.suffix: t for t in (JSON, TABLE, TENSORS)}
    kind = kinds[path.suffix]
    cached_file(path.parent, key, lambda: kind.read(whole), kind)
    return value_of(path)


def cases(cache: Path) -> Iterator[tuple[Path, Path]]:
    """Entry and file of it, for every file of the cache."""
    for path in entries(cache):
        files = path.rglob("*") if path.is_dir() else (path, manifest_of(path))
        yield from ((path, file) for file in sorted(files) if file.is_file())


def attack_cache_files(cache: Path, copy: Path, n_cases: int, seed: int) -> Counter[str]:
    shutil.copytree(cache, copy)
    right = {path: value_of(path) for path in entries(cache)}
    ends, draw, every = Counter[str](), random.Random(seed), list(cases(cache))
    for case in range(n_cases):
        path, file = every[case % len(every)]
        content = file.read_bytes()
        file.write_bytes(DAMAGES[case // len(every) % len(DAMAGES)](content, draw))
        assert asked_again(path, copy / path.relative_to(cache)) == right[path], (file, case)
        ends["rebuilt"] += 1
    return ends


def test_a_damaged_file_of_the_cache_is_made_again(cache: Path, tmp_path: Path) -> None:
    n_cases = len(list(cases(cache)))
    assert attack_cache_files(cache, tmp_path / "copy", n_cases, seed=0).total() == n_cases


@pytest.mark.slow
def test_two_thousand_damages_end_in_right_numbers_a_repair_or_one_line(
    run: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_run = attack_run_files(run, 1500, seed=1)
    of_cache = attack_cache_files(cache, tmp_path / "copy", 1000, seed=2)
    with capsys.disabled():
        print(f"\n{of_run.total()} damages of a run: {dict(of_run)}")
        print(f"{of_cache.total()} damages of a cache: {dict(of_cache)}")
    assert of_run.total() + of_cache.total() >= 2000
