"""No result depends on the order of a set, which is another in every process: the same sweep in
two processes with two seeds of Python's string hash.
"""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from rayunlearn.config import Trial
from rayunlearn.data.load import load_corpus
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.schema import PER_TRIAL
from rayunlearn.selectors.redundancy import covered_weight, expected_coverage
from rayunlearn.storage.artifact_cache import entries
from rayunlearn.storage.run import open_run
from rayunlearn.train.teach import training_texts

ROOT = Path(__file__).parents[1]
SEEDS = (0, 3)
# when and where a trial ran, and how long it took
CIRCUMSTANCES = ("started_at", "host", "hardware", "peak_memory_bytes")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The output folder of each seed's process."""
    folder, corpus = tmp_path_factory.mktemp("seeds"), load_corpus(Trial().data)
    everything = [*corpus.forget, *corpus.retain, *(d for p in corpus.probes.values() for d in p)]
    tokenizer = build_tokenizer(training_texts(everything, Trial().data.template))
    model = save_model(build_model("tiny", len(tokenizer), seed=0), tokenizer, folder / "model")
    # together: half of their time goes into imports
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.hash_seed_process", model, folder / str(seed)],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)},
        )
        for seed in SEEDS
    ]
    assert [process.wait() for process in processes] == [0, 0]
    return {seed: folder / str(seed) for seed in SEEDS}


@pytest.mark.parametrize("table", PER_TRIAL)
def test_every_row_is_the_same_under_every_hash_seed(outputs: dict[int, Path], table: str) -> None:
    frames = [
        getattr(open_run(output / "seeds" / "1"), table).collect() for output in outputs.values()
    ]
    times = [name for name in frames[0].columns if name.startswith("seconds")]
    first, *others = [frame.drop(*times, *CIRCUMSTANCES, strict=False) for frame in frames]
    assert first.height or table in ("curves", "diagnostics")
    assert all(first.equals(other) for other in others)


def test_the_process_runs_something_of_every_kind(outputs: dict[int, Path]) -> None:
    trials = open_run(outputs[0] / "seeds" / "1").trials.collect()
    assert trials["keyword_coverage"].drop_nulls().n_unique() > 3
    assert trials["keyword_curve_25"].drop_nulls().len() == 1
    assert trials.filter(pl.col("attack.name") != "none").height == 4


def test_every_file_of_the_cache_is_the_same_under_every_hash_seed(
    outputs: dict[int, Path],
) -> None:
    contents = [
        {
            path.relative_to(output).as_posix(): path.read_bytes()
            for path in entries(output / "cache")
        }
        for output in outputs.values()
    ]
    assert {name.split("/")[1] for name in contents[0]} >= {"keywords", "scores", "reference"}
    assert contents[0] == contents[1]


def test_the_weight_of_all_keywords_is_covered_by_all_documents_exactly() -> None:
    """Tenths, whose sum follows their order: 0.1 + 0.2 + 0.3 is 0.6000000000000001 or 0.6. One
    document has them all, so it covers the whole weight and not more.
    """
    keywords = [{"a": 0.1}, {"b": 0.2}, {"c": 0.3}, {"c": 0.3, "b": 0.2, "a": 0.1}]
    assert covered_weight(keywords, [3]) == 1.0 and covered_weight(keywords, [0, 1, 2]) == 1.0
    assert expected_coverage(keywords, 4) == 1.0


def test_a_part_never_weighs_more_than_the_whole() -> None:
    """Weights that a plain sum gives different totals for in different orders."""
    words = [f"w{at}" for at in range(1000)]
    keywords = [{word: 1 / (at + 3) for at, word in enumerate(words)}]
    keywords += [dict(reversed(keywords[0].items()))]
    assert covered_weight(keywords, [0]) == covered_weight(keywords, [1]) == 1.0
    assert sum(keywords[0].values()) != sum(keywords[1].values())
