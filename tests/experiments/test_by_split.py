"""What a run leaves on each split, on a run whose numbers are planted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.findings.by_split import (
    cells_of,
    compared,
    covered_sentences,
    covered_table,
    probes_of_passages,
    split_sentences,
    split_table,
)
from experiments.findings.page import split_findings
from rayunlearn.analysis.run_frames import objective_of
from rayunlearn.config import Data, Trial, Value, digest, flatten, with_values
from rayunlearn.data.load import load_corpus
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table, write_trial
from rayunlearn.trial import identity
from tests.synthetic import EXPERIMENT, plan_row

SPLITS = ("forget", "near", "untouched", "far", "retain")
# what is left by cell: (text, ratio) -> a value per split; five documents a split around it
LEFT = {
    ("original", 1.0): (0.1, 0.2, 0.7, 0.5, 0.8),
    ("original", 0.25): (0.1, 0.2, 0.7, 0.5, 0.8),
    ("original", 0.05): (0.4, 0.5, 0.7, 0.5, 0.8),
    ("random_text", 0.25): (0.7, 0.6, 0.7, 0.5, 0.8),
}
BASE_LEFT = (0.8, 0.6, 0.7, 0.5, 0.8)
# means 0, so that a cell's mean is the planted one
SPREAD = (-0.04, -0.02, 0.0, 0.02, 0.04)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    plan = []
    for (text, ratio), left in LEFT.items():
        for seed in (0, 1, 2):
            values: dict[str, Value] = {"select.text": text, "select.ratio": ratio}
            trial = with_values(Trial(), values | {"select.seed": seed, "train.seed": seed})
            plan.append(written(folder, trial, left, "grid", 0.01 * (seed - 1)))
    base = with_values(Trial(), {"stage": "base"})
    plan.append(written(folder, base, BASE_LEFT, "base", 0.0))
    write_run_table(folder, "plan", plan)
    write_experiment(folder, EXPERIMENT | {"search": {}})
    return open_run(folder)


def written(
    folder: Path, trial: Trial, left: tuple[float, ...], role: str, shift: float
) -> dict[str, object]:
    identity = digest(flatten(trial))
    common = {"stage": trial.stage, "attack": "none", "metric": "probability"}
    examples = [
        common | {"doc_id": f"{split}{n}", "split": split, "value": value + spread + shift}
        for split, value in zip(SPLITS, left, strict=True)
        for n, spread in enumerate(SPREAD)
    ]
    rows = {"trials": [{"status": "complete", "n_forget": 20, "n_kept": 5}], "examples": examples}
    write_trial(folder, identity, rows, flatten(trial))
    return plan_row(identity, role, "{}")


def test_every_cell_has_its_mean_on_every_split(run: Run) -> None:
    assert objective_of(run.experiment).forgetting == "probability"
    table = split_table(run)
    assert table.height == 5 * 5
    for row in table.iter_rows(named=True):
        text = "original" if row["arm"] in ("all", "random") else row["arm"]
        planted = BASE_LEFT if row["role"] == "base" else LEFT[(text, row["ratio"])]
        assert row["mean"] == pytest.approx(planted[SPLITS.index(row["split"])])
        assert row["seeds"] == (1 if row["role"] == "base" else 3)
        assert row["low"] < row["mean"] < row["high"]


def test_the_full_set_comes_first_and_a_control_has_the_name_of_its_text(run: Run) -> None:
    assert [place[2:] for place in cells_of(run)] == [
        ("", 1.0),
        ("all", 1.0),
        ("random", 0.25),
        ("random", 0.05),
        ("random_text", 0.25),
    ]


def test_a_difference_is_the_first_minus_the_second(run: Run) -> None:
    cells = list(cells_of(run))
    row = compared(run, [(cells[4], cells[2])], "forget").row(0, named=True)
    assert row["mean"] == pytest.approx(0.6) and row["low"] > 0.5 and row["p"] < 0.01
    assert (row["one"], row["other"]) == ("random text 25%", "random 25%")


def test_sentences_say_which_part_does_what_all_documents_do_and_what_falls_beside(
    run: Run,
) -> None:
    quarter, one, beside = split_sentences(run)
    assert quarter.startswith("npo + nll: random 25% minus all documents +0.000 [")
    assert quarter.endswith("no difference is shown.")
    assert "random 5% minus all documents +0.300" in one and one.endswith("more is left.")
    assert "forget -0.700 [" in beside and "near -0.400 [" in beside
    assert "untouched +0.000 [" in beside and "far +0.000 [" in beside


def test_text_without_a_key_is_shown_by_its_probability(tmp_path: Path) -> None:
    """The goal is the key word's: forget documents have both, the passages `probability` alone."""
    plan = []
    rows = [("forget", "key_probability", 0.8), ("forget", "probability", 0.3)]
    rows += [("general", "key_probability", None), ("general", "probability", 0.05)]
    for role, shift in (("base", 0.0), ("grid", -0.01)):
        trial = with_values(Trial(), {"stage": "base" if role == "base" else "unlearned"})
        examples = [
            {"stage": trial.stage, "attack": "none", "metric": metric, "split": split}
            | {"doc_id": f"{split}{n}", "value": value and value + shift}
            for split, metric, value in rows
            for n in range(3)
        ]
        identity = digest(flatten(trial))
        ended = [{"status": "complete", "n_forget": 20, "n_kept": 20}]
        write_trial(tmp_path, identity, {"trials": ended, "examples": examples}, flatten(trial))
        plan.append(plan_row(identity, role, "{}"))
    goal = {"forgetting": "key_probability", "utility": "key_probability"}
    write_run_table(tmp_path, "plan", plan)
    write_experiment(tmp_path, EXPERIMENT | {"search": {}, "objective": goal})
    run = open_run(tmp_path)

    means = {
        (row["role"], row["split"]): row["mean"] for row in split_table(run).iter_rows(named=True)
    }
    assert means["base", "forget"] == pytest.approx(0.8)
    assert means["base", "general"] == pytest.approx(0.05)
    assert means["grid", "general"] == pytest.approx(0.04)
    sentences = " ".join(split_sentences(run))
    # 0.04 in place of 0.05
    assert "general text, base's probability of a token 0.0500, change: all 100% -20.0% [" in (
        sentences
    )
    _, table = split_findings(run)
    assert table is not None and [row[-1] for row in table.rows] == [
        "0.0500 [0.0500, 0.0500]",
        "0.0400 [0.0400, 0.0400]",
    ]


@pytest.fixture
def covering_run(tmp_path: Path) -> Run:
    """Coresets of two documents lose 0.3 more of those, one of one document nothing more; random
    text in their place is no coverage.
    """
    plan = []
    for seed in (0, 1, 2):
        values: dict[str, Value] = {"select.seed": seed, "train.seed": seed}
        covered = {f"forget{seed}", f"forget{seed + 1}"}
        trial = with_values(Trial(), values | {"select.ratio": 0.4})
        plan.append(covering_trial(tmp_path, trial, covered, 0.3 + 0.01 * (seed - 1)))
        text = with_values(trial, {"select.text": "random_text"})
        plan.append(covering_trial(tmp_path, text, covered, 0.3))
        one = with_values(trial, {"select.ratio": 0.2})
        plan.append(covering_trial(tmp_path, one, {f"forget{seed}"}, 0.0))
    base = with_values(Trial(), {"stage": "base"})
    plan.append(covering_trial(tmp_path, base, set(), 0.0, "base"))
    write_run_table(tmp_path, "plan", plan)
    write_experiment(tmp_path, EXPERIMENT | {"search": {}})
    return open_run(tmp_path)


def covering_trial(
    folder: Path, trial: Trial, covered: set[str], gap: float, role: str = "grid"
) -> dict[str, object]:
    identity = digest(flatten(trial))
    common = {"stage": trial.stage, "attack": "none", "metric": "probability", "split": "forget"}
    examples = [
        common | {"doc_id": name, "value": 0.5 + spread - gap * (name in covered)}
        for name, spread in ((f"forget{n}", spread) for n, spread in enumerate(SPREAD))
    ]
    coresets = [
        {"doc_id": name, "role": "forget", "rank": rank, "score": 0.0}
        for rank, name in enumerate(sorted(covered))
    ]
    trials = [{"status": "complete", "n_forget": 5, "n_kept": len(covered)}]
    rows = {"trials": trials, "examples": examples, "coresets": coresets}
    write_trial(folder, identity, rows, flatten(trial))
    return plan_row(identity, role, "{}")


def test_what_is_covered_is_held_against_what_is_not(covering_run: Run) -> None:
    two, one = covered_table(covering_run).to_dicts()
    # the spread of the documents: pairs (0,1), (1,2), (2,3) minus the other three
    spreads = [-0.03 - 0.02, -0.01 - 0.02 / 3, 0.01 + 0.02 / 3]
    planted = sum(s - 0.3 - 0.01 * (n - 1) for n, s in enumerate(spreads)) / 3
    assert (two["arm"], two["ratio"], two["trials"]) == ("random", 0.4, 3)
    assert two["mean"] == pytest.approx(planted) and two["high"] < 0
    assert one["ratio"] == 0.2 and one["low"] < 0 < one["high"]


def test_a_passage_that_trains_whole_is_the_probe_that_asks_its_second_half(
    tmp_path: Path, books: Path
) -> None:
    """Passages as `rayunlearn books` writes them, and the probes that their halves are."""
    data = Data(name="files", path=str(books), probe_forget="probe_forget", template="{prompt}")
    corpus = load_corpus(data)
    trial = replace(Trial(), data=data)
    ended = {"status": "complete", "corpus_digest": corpus.digest}
    write_trial(tmp_path, "a" * 8, {"trials": [ended]}, flatten(trial))
    of_passage = probes_of_passages(open_run(tmp_path))
    probes = {d.doc_id: d for d in corpus.probes["forget"]}
    assert of_passage.keys() == {d.doc_id for d in corpus.forget}
    for passage in corpus.forget:
        probe = probes[of_passage[passage.doc_id]]
        assert passage.answer.split() == [*probe.prompt.split(), *probe.answer.split()]
    # a process reads a corpus once
    identity._corpus_of.cache_clear()
    (books / "retain.jsonl").write_text('{"answer": "nine ten eleven twelve"}', encoding="utf-8")
    assert probes_of_passages(open_run(tmp_path)) == {}
    shutil.rmtree(books)
    assert probes_of_passages(open_run(tmp_path)) == {}


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Two passages to forget, one to retain, each with its two halves as a probe."""
    folder = tmp_path / "books"
    folder.mkdir()
    halves = {
        "forget": [("one two", "three four"), ("five six", "seven eight")],
        "retain": [("red green", "blue white")],
    }
    for split, pairs in halves.items():
        whole = [{"answer": f"{prompt} {answer}"} for prompt, answer in pairs]
        asked = [{"prompt": prompt, "answer": answer} for prompt, answer in pairs]
        for name, rows in ((split, whole), (f"probe_{split}", asked)):
            lines = "\n".join(json.dumps(row) for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_a_document_that_is_a_coreset_by_itself_is_named_with_what_it_leaves(
    covering_run: Run,
) -> None:
    of_two, of_one, alone = covered_sentences(covering_run)
    assert "random 40%" in of_two and of_two.endswith("what is covered is forgotten more.")
    assert "random 20%" in of_one and of_one.endswith("is not shown.")
    assert alone.startswith("npo + nll: one document alone leaves of all: 0.50 (document forget")
    assert "of which base knows 0.46" in alone and "0.48" in alone


def test_the_page_has_a_column_for_each_split(run: Run) -> None:
    sentences, table = split_findings(run)
    assert table is not None
    assert table.headers == ("role", "method", "arm", "ratio", "seeds", *SPLITS)
    assert len(table.rows) == 5 and sentences
