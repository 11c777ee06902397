"""The first page of a report, on runs whose numbers are planted."""

from pathlib import Path

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.cli.output import what_now
from rayunlearn.reporting.summary import summary_block
from rayunlearn.storage.run import open_run, write_experiment, write_run_table
from tests import synthetic

# text, ratio -> what is left
LEFT = {
    ("original", 1.0): 0.2,
    ("original", 0.25): 0.3,
    ("shuffled_answers", 0.25): 0.1,
    ("random_text", 0.25): 0.9,
}


def text_run(folder: Path) -> Path:
    """Documents and other texts in their place, of which wrong answers forget most."""
    base = synthetic.add_trial(folder, {"stage": "base"}, {"forget": 0.95, "retain": 0.9})
    rows = [synthetic.plan_row(base, "base", "{}")]
    for (text, ratio), left in LEFT.items():
        changes = {"select.text": text, "select.ratio": ratio}
        trial = synthetic.add_trial(folder, changes, {"forget": left, "retain": 0.9})
        rows.append(synthetic.plan_row(trial, "grid", "{}"))
    write_run_table(folder, "plan", rows)
    write_experiment(folder, synthetic.EXPERIMENT)
    return folder


def test_what_is_left_is_of_the_documents_and_other_texts_are_controls(tmp_path: Path) -> None:
    run = open_run(text_run(tmp_path)).in_memory()
    block = summary_block(run, coreset_table(run), "left")
    assert block.table is not None and "select.text" not in block.table.headers
    assert [row[:2] for row in block.table.rows][1:] == [("npo + nll", "100%")]
    words = " ".join(block.sentences)
    assert "shuffled answers 0.10 to 0.10" in words and "random text 0.90 to 0.90" in words


def test_the_best_cell_of_a_method_trained_on_documents(tmp_path: Path) -> None:
    best, *_ = what_now(text_run(tmp_path))
    assert "npo + nll 0.20 at 100%" in best
