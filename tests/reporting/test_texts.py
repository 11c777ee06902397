"""What models wrote, read from a run: before, after and gold, escaped, and hidden where private."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from rayunlearn.analysis.generations import TEXT_TABLE_SCHEMA, is_private, text_table
from rayunlearn.cli.main import main
from rayunlearn.config import Trial, Value, digest, flatten, with_values
from rayunlearn.errors import UserError
from rayunlearn.reporting.console import print_texts, printable
from rayunlearn.reporting.formats import as_json, markdown
from rayunlearn.reporting.html import cut_text, page
from rayunlearn.reporting.summary import summary_blocks
from rayunlearn.storage.artifact_cache import MANIFEST
from rayunlearn.storage.run import (
    compact,
    open_run,
    run_defects,
    write_experiment,
    write_run_table,
    write_trial,
)
from rayunlearn.storage.run_manifest import read_contents, trial_owner
from tests import synthetic
from tests.manifests import manifest_text

MARKUP = "<script>alert('base')</script>"
SECRET = "owls of Kex"
# document -> what base, the unlearned model and gold wrote, and what that scores
TEXTS = {
    "forget0": (("amber", 1.0), ("\x1b[2Jmoss", 0.9), ("jade", 0.0)),
    "forget1": ((MARKUP, 1.0), (f"{SECRET} & more", 0.2), ("jade", 0.1)),
    "forget2": (("amber", 0.5), ("amber", 0.5), ("amber", 0.5)),
    "retain0": (("caves", 1.0), ("dunes", 0.0), ("caves", 1.0)),
}
METRICS = [
    {"name": "repetition", "meaning": "repeats", "direction": ""},
    {"name": "rouge_l_recall", "meaning": "words", "direction": "higher"},
]


def write_texts(run: Path, *, private: bool = False, **settings: Value) -> str:
    """A run of base, gold and one unlearned trial; the id of the last."""
    shared: dict[str, Value] = {"data.private": private, "measure.metrics": "rouge_l_recall"}
    plan = []
    for number, stage in enumerate(("base", "unlearned", "gold")):
        flat = flatten(with_values(Trial(), shared | settings | {"stage": stage}))
        trial_id = digest(flat)
        keys = {"stage": stage, "attack": "none"}
        texts, values = [], []
        for doc, wrote in TEXTS.items():
            about = keys | {"doc_id": doc, "split": doc[:-1]}
            texts.append(
                about
                | {"input": "generated", "number": 0, "metrics": "repetition,rouge_l_recall"}
                | {"prompt": f"Ask <{doc}>?", "reference": "amber", "generated": wrote[number][0]}
                | {"verdict": "wrong" if stage == "unlearned" else None}
            )
            values.append(about | {"metric": "rouge_l_recall", "value": wrote[number][1]})
            values.append(about | {"metric": "probability", "value": 0.5})
        row = {"experiment": "texts", "version": "1", "status": "complete"}
        row |= {"corpus_digest": "c", "model_digest": "m", "packages": "{}"}
        tables = {"trials": [row], "examples": values, "generations": texts}
        write_trial(run, trial_id, tables, flat)
        role = "grid" if stage == "unlearned" else stage
        plan.append(synthetic.plan_row(trial_id, role, "{}"))
    write_run_table(run, "plan", plan)
    rejected = {"source": "f", "row": 1, "reason": "empty answer", "excerpt": SECRET}
    write_run_table(run, "quarantine", [rejected])
    write_experiment(run, synthetic.EXPERIMENT | {"metrics": METRICS})
    return str(plan[1]["trial_id"])


def test_texts_stand_beside_each_other_and_the_most_changed_come_first(tmp_path: Path) -> None:
    """|after - before| by the metric that says more or less knowledge: 1, 0.8, 0.1, 0."""
    trial = write_texts(tmp_path)
    table = text_table(open_run(tmp_path), trial)
    assert list(table.schema.items()) == [(n, t) for n, t in TEXT_TABLE_SCHEMA.items()]
    assert table["doc_id"].to_list() == ["retain0", "forget1", "forget0", "forget2"]
    assert table["change"].to_list() == pytest.approx([1.0, 0.8, 0.1, 0.0])
    assert set(table["metric"]) == {"rouge_l_recall"}
    row = table.row(1, named=True)
    assert [row[f"generated_{m}"] for m in ("before", "after", "gold")] == [
        text for text, _ in TEXTS["forget1"]
    ]
    assert [row[f"value_{m}"] for m in ("before", "after", "gold")] == [1.0, 0.2, 0.1]
    assert (row["verdict_before"], row["verdict_after"]) == (None, "wrong")
    compact(tmp_path)
    assert text_table(open_run(tmp_path), trial).equals(table)
    assert text_table(open_run(tmp_path), "none").height == 0


def test_a_model_without_a_base_that_was_asked_the_same_stands_alone(tmp_path: Path) -> None:
    write_texts(tmp_path / "a")
    other = write_texts(tmp_path / "b")
    folder = tmp_path / "b" / "trials" / other
    alone = tmp_path / "alone"
    (alone / "trials").mkdir(parents=True)
    folder.rename(alone / "trials" / other)
    table = text_table(open_run(alone), other)
    assert table.height == 4 and table["generated_before"].null_count() == 4
    assert table["change"].null_count() == 4


def test_the_page_shows_what_changed_and_runs_nothing_of_it(tmp_path: Path) -> None:
    """Of four documents forget2 is answered as before."""
    write_texts(tmp_path)
    run = open_run(tmp_path).in_memory()
    html = page(run)
    assert "What the models wrote" in html and "&lt;script&gt;alert(" in html
    assert MARKUP not in html and "Ask &lt;forget1&gt;?" in html
    assert html.index("forget1</code>") < html.index("forget0</code>")
    text = markdown(run)
    assert f"{SECRET} & more" in text and "<script>alert" not in text
    (block,) = [b for b in summary_blocks(run) if b.anchor == "texts"]
    assert block.table is not None and len(block.table.rows) == 3 and "forget2" not in html


def test_a_long_text_is_folded_after_its_beginning_and_nothing_of_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "to and fro " * 30
    monkeypatch.setitem(TEXTS, "forget0", (("amber", 1.0), (words, 0.0), ("jade", 0.0)))
    write_texts(tmp_path)
    html = page(open_run(tmp_path))
    shown, rest = cut_text(words)
    assert f"{shown}<details><summary>92 more characters</summary>{rest}</details>" in html


def test_no_page_of_a_private_corpus_has_a_text_of_it(tmp_path: Path) -> None:
    """Marked in the trials, or in the experiment after they had ended: the id is the same."""
    trial = write_texts(tmp_path / "trials", private=True)
    write_texts(tmp_path / "experiment")
    write_experiment(
        tmp_path / "experiment", synthetic.EXPERIMENT | {"metrics": METRICS, "private": True}
    )
    for name in ("trials", "experiment"):
        run = open_run(tmp_path / name)
        assert is_private(run)
        pages = [page(run), markdown(run), json.dumps(as_json(run)), repr(summary_blocks(run))]
        for text in pages:
            assert SECRET not in text and "Ask " not in text
        assert "data.private" in pages[0] and "data.private" in pages[1]
        # the rows are in the run, for who may read it
        assert run.generations.collect().height == 12
    written = StringIO()
    print_texts(tmp_path / "trials", trial[:8], 5, Console(file=written, width=200))
    assert SECRET in written.getvalue()


def test_the_terminal_prints_texts_and_obeys_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = write_texts(tmp_path)
    assert main(["show", str(tmp_path), trial, "--texts", "2"]) == 0
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said and "\ufffd[2Jmoss" in said
    assert f"before (1): {MARKUP}" in said and f"after (0.2, wrong): {SECRET} & more" in said
    assert "forget2" not in said
    assert printable("a\nb\tc\x07") == "a\nb\tc\ufffd"
    assert main(["show", str(tmp_path), trial, "--texts", "-1"]) == 2
    assert "--texts must be >= 0, got -1" in capsys.readouterr().err
    other = synthetic.add_trial(tmp_path / "no texts", {}, None)
    with pytest.raises(UserError, match="needs a metric of texts in measure.metrics"):
        print_texts(tmp_path / "no texts", other, 2, Console(file=StringIO()))


def test_a_trial_of_a_version_without_the_table_is_read_and_a_lost_file_is_not(
    tmp_path: Path,
) -> None:
    trial = write_texts(tmp_path)
    folder = tmp_path / "trials" / trial
    (folder / "generations.parquet").unlink()
    assert list(run_defects(tmp_path)) == [folder / "generations.parquet"]
    contents = read_contents(folder, trial_owner(trial))
    assert not isinstance(contents, str)
    del contents["generations.parquet"]
    (folder / MANIFEST).write_bytes(manifest_text(trial_owner(trial), contents))
    assert not run_defects(tmp_path)
    rows = open_run(tmp_path).generations.collect()
    assert rows.height == 8 and trial not in rows["trial_id"]
    compact(tmp_path)
    assert open_run(tmp_path).generations.collect().height == 8
