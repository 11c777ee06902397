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
    assert "random text 0.90, shuffled answers 0.10." in words


def test_the_best_cell_of_a_method_trained_on_documents(tmp_path: Path) -> None:
    best, *_ = what_now(text_run(tmp_path))
    assert "npo + nll 0.20 at 100%" in best


def test_where_nothing_trained_on_whole_documents_the_other_texts_are_the_results(
    tmp_path: Path,
) -> None:
    base = synthetic.add_trial(tmp_path, {"stage": "base"}, {"forget": 0.95, "retain": 0.9})
    rows = [synthetic.plan_row(base, "base", "{}")]
    for text in ("keywords_only", "random_words"):
        trial = synthetic.add_trial(tmp_path, {"select.text": text}, {"forget": 0.3, "retain": 0.9})
        rows.append(synthetic.plan_row(trial, "grid", "{}"))
    write_run_table(tmp_path, "plan", rows)
    write_experiment(tmp_path, synthetic.EXPERIMENT)
    assert "npo + nll 0.30" in what_now(tmp_path)[0]
    run = open_run(tmp_path).in_memory()
    block = summary_block(run, coreset_table(run), "left")
    assert block.table is not None and "select.text" in block.table.headers
    assert len(block.table.rows) == 3
