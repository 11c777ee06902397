"""A run as a benchmark card: what is in it, what is not, and two of them side by side."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.cli import main
from rayunlearn.errors import UserError
from rayunlearn.interop.card import CARD_TABLES, Card, read_card, write_card
from rayunlearn.interop.compare_cards import compare_cards, welch_interval
from rayunlearn.storage.artifact_cache import file_digest
from rayunlearn.storage.run import open_run

RUN = Path("docs/notebooks/runs/coreset")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card of a real run; read it, never write to it."""
    return write_card(RUN, tmp_path_factory.mktemp("cards") / "theirs")


def changed(folder: Path, target: Path, shift: float, **facts: object) -> Path:
    """A copy of a card as another group would have it: every value of the grid's seeds and their
    mean is `shift` larger.
    """
    shutil.copytree(folder, target)
    card = read_card(target)
    grid = card.tables["cells"].filter(pl.col("role") == "grid")["cell"].implode()
    moved = pl.when(pl.col("cell").is_in(grid)).then(shift).otherwise(0.0)
    for name, columns in (("trials", ["value"]), ("means", ["mean", "mean_low", "mean_high"])):
        frame = card.tables[name].with_columns(pl.col(c) + moved for c in columns)
        frame.write_parquet(target / f"{name}.parquet")
    files = {
        f"{name}.parquet": {"sha256": file_digest(target / f"{name}.parquet")}
        for name in CARD_TABLES
    }
    (target / "card.json").write_text(json.dumps(card.facts | facts | {"files": files}))
    return target


def test_a_card_has_the_numbers_of_the_report_and_every_other_metric(folder: Path) -> None:
    card, run = read_card(folder), open_run(RUN)
    table = coreset_table(run)
    assert card.tables["cells"]["forgetting_low"].to_list() == table["forgetting_low"].to_list()
    goal = card.facts["objective"]
    means = card.tables["means"].filter(
        pl.col("split") == "forget", pl.col("metric") == goal["forgetting"]
    )
    found = card.tables["cells"].join(means, on="cell")
    for ours, theirs in (("mean", "forgetting"), ("mean_low", "forgetting_low")):
        assert found[ours].to_list() == found[theirs].to_list()
    assert set(card.tables["means"]["metric"]) == set(run.examples.collect()["metric"])


def test_a_trial_row_is_what_evals_says_with_its_seeds(folder: Path) -> None:
    card, evals = read_card(folder), open_run(RUN).evals.collect()
    rows = card.tables["trials"]
    both = rows.join(evals, on=["trial_id", "stage", "attack", "split", "metric"], suffix="_evals")
    assert both.height == rows.height > 0
    assert both.filter(pl.col("value") != pl.col("value_evals")).height == 0
    assert rows["train.seed"].n_unique() > 1


def test_a_card_is_small_and_holds_no_text_of_a_document(folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size < 300_000
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    ids = open_run(RUN).examples.select("doc_id").unique().collect()["doc_id"]
    frames = read_card(folder).tables
    assert not any("doc_id" in frame.columns for frame in frames.values())
    assert len(ids) > 50 and not any(f'"{name}"'.encode() in content for name in ids)
    facts = read_card(folder).facts
    assert facts["trials"] == {"collapsed": 1, "complete": 31} and len(facts["corpora"]) == 1
    assert facts["settings"]["data.name"] == "domain" and "select.ratio" in facts["varying"]


def test_paths_in_settings_are_cut_to_their_last_part(tmp_path: Path) -> None:
    run = shutil.copytree(RUN, tmp_path / "run", ignore=shutil.ignore_patterns("manifest.json"))
    table = run / "tables" / "trials.parquet"
    schema = pl.read_parquet_metadata(table)
    frame = pl.read_parquet(table).with_columns(pl.lit("/home/someone/corpus").alias("data.path"))
    version = {k: v for k, v in schema.items() if k.startswith("rayunlearn")}
    frame.write_parquet(table, metadata=version)
    experiment = json.loads((run / "experiment.json").read_text())
    experiment["notes"] = ["taken from /home/someone/runs/earlier, 3 documents"]
    (run / "experiment.json").write_text(json.dumps(experiment))
    assert main(["check", str(run), "--repair"]) == 0
    card = read_card(write_card(run, tmp_path / "card"))
    assert card.facts["settings"]["data.path"] == "corpus"
    assert card.facts["notes"] == ["taken from earlier, 3 documents"]
    content = b"".join(file.read_bytes() for file in (tmp_path / "card").iterdir())
    assert b"someone" not in content


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("table", "must be what was written"),
        ("missing", "got 'no file'"),
        ("format", "must be of format 1, got 2"),
        ("text", "must be JSON"),
        ("folder", "must be a folder with card.json"),
    ],
)
def test_what_is_no_card_is_refused_in_words(
    folder: Path, tmp_path: Path, damage: str, words: str
) -> None:
    card = shutil.copytree(folder, tmp_path / "card")
    file = card / "means.parquet"
    if damage == "table":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif damage == "missing":
        file.unlink()
    elif damage == "format":
        facts = json.loads((card / "card.json").read_text()) | {"card": 2}
        (card / "card.json").write_text(json.dumps(facts))
    elif damage == "text":
        (card / "card.json").write_text("{")
    else:
        (card / "card.json").unlink()
    with pytest.raises(UserError, match=words):
        read_card(card)


def test_a_card_is_never_written_over_another(folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist yet"):
        write_card(RUN, folder)


def test_the_same_run_twice_differs_in_nothing(folder: Path, tmp_path: Path) -> None:
    again = write_card(RUN, tmp_path / "again")
    found = compare_cards([read_card(folder), read_card(again)])
    assert found.settings.height == 0 and found.same_corpus and found.unmatched == (0,)
    difference = f"difference {found.names[1]}"
    assert set(found.cells[difference].drop_nulls()) == {0.0}
    assert found.cells[difference].null_count() == 0


def test_a_shift_is_found_with_the_interval_of_welch(folder: Path, tmp_path: Path) -> None:
    """Every seed is 0.1 larger, so the difference is 0.1, and by scipy's own test its interval is
    that of two samples of the same spread.
    """
    other = changed(folder, tmp_path / "ours", 0.1, name="ours", budget={"trials": 99})
    cards = [read_card(folder), read_card(other)]
    found = compare_cards(cards)
    assert found.settings["name"].to_list() == ["budget"]
    grid = found.cells.filter(pl.col("role") == "grid")
    assert grid.height >= 4
    assert grid["difference ours 1"].to_list() == pytest.approx([0.1] * grid.height)
    row = grid.row(0, named=True)
    seeds = values_of(cards[0], row)
    test = stats.ttest_ind(seeds + 0.1, seeds, equal_var=False).confidence_interval(0.95)
    ends = (row["difference_low ours 1"], row["difference_high ours 1"])
    assert ends == pytest.approx((test.low, test.high))
    others = found.cells.filter(pl.col("role") != "grid")["difference ours 1"]
    assert others.to_list() == pytest.approx([0.0] * len(others))


def values_of(card: Card, row: dict[str, object]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Values of a cell's seeds, by hand."""
    names = ("role", "method", "select.name", "select.ratio")
    cell = card.tables["cells"].filter(*(pl.col(n) == row[n] for n in names))["cell"].item()
    return (
        card.tables["trials"]
        .filter(
            pl.col("cell") == cell,
            pl.col("stage") == "unlearned",
            pl.col("attack") == "none",
            pl.col("split") == row["split"],
            pl.col("metric") == row["metric"],
        )["value"]
        .to_numpy()
    )


def test_welch_interval_by_hand() -> None:
    """Means 1 and 4, variances 1 and 4 of three and four values: t of 4.59 degrees of freedom."""
    first, other = np.array([0.0, 1.0, 2.0]), np.array([2.0, 2.0, 6.0, 6.0])
    low, high = welch_interval(first, other) or (0.0, 0.0)
    spread = 1 / 3 + (16 / 3) / 4
    freedom = spread**2 / ((1 / 3) ** 2 / 2 + ((16 / 3) / 4) ** 2 / 3)
    half = stats.t.ppf(0.975, freedom) * spread**0.5
    assert (low, high) == pytest.approx((3 - half, 3 + half))
    assert welch_interval(first[:1], other) is None
    assert welch_interval(np.ones(2), np.full(3, 4.0)) == (3.0, 3.0)


def test_a_setting_that_one_card_varies_is_the_constant_of_the_other(
    folder: Path, tmp_path: Path
) -> None:
    """Theirs has every grid cell at batch sizes 8 and 16; ours all at 8: ours is held against the
    half that it is comparable with.
    """
    other = shutil.copytree(folder, tmp_path / "other")
    cells = read_card(folder).tables["cells"]
    grid = cells.filter(pl.col("role") == "grid")
    trained = pl.col("role").is_in(["grid", "control"])
    size = pl.when(trained).then(8).alias("train.batch_size")
    more = grid.with_columns(pl.col("cell") + 1000, pl.lit(16, pl.Int32).alias("train.batch_size"))
    both = pl.concat([cells.with_columns(size), more.select(*cells.columns, "train.batch_size")])
    both.write_parquet(other / "cells.parquet")
    facts = json.loads((other / "card.json").read_text())
    del facts["settings"]["train.batch_size"]
    facts["files"]["cells.parquet"]["sha256"] = file_digest(other / "cells.parquet")
    (other / "card.json").write_text(json.dumps(facts | {"name": "other"}))
    ours = read_card(folder)
    assert ours.facts["settings"]["train.batch_size"] == 8
    found = compare_cards([ours, read_card(other)])
    assert found.unmatched == (grid.height,)
    assert found.cells["difference other 1"].to_list() == [0.0] * found.cells.height
    assert found.cells.filter(pl.col("role") == "grid")["train.batch_size"].unique().to_list() == [
        8
    ]


def test_cards_of_other_documents_get_no_difference(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(folder, tmp_path / "ours", 0.1, corpora=["another"], name="ours")
    found = compare_cards([read_card(folder), read_card(other)])
    assert not found.same_corpus
    assert found.cells["difference ours 1"].null_count() == found.cells.height
    assert main(["compare", str(folder), str(other)]) == 0
    printed = capsys.readouterr().out
    assert "the cards are of different documents" in printed and "corpora" in printed
    assert printed.index("What differs") < printed.index("What was measured")


def test_the_commands_write_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "card"
    assert main(["card", str(RUN), "--output", str(card)]) == 0
    assert "# Benchmark card: " in (card / "README.md").read_text()
    assert main(["compare", str(card)]) == 2
    assert main(["compare", str(card), str(card), "--metric", "no_such"]) == 2
    errors = capsys.readouterr().err
    assert "needs two cards or more, got 1" in errors
    assert "--metric must be a metric of the first card, got ['no_such']" in errors
    assert main(["compare", str(card), str(card), "--metric", "multiple_choice"]) == 0
    printed = capsys.readouterr().out
    assert "nothing that a card records differs" in printed
    assert "multiple_choice on forget" in printed
