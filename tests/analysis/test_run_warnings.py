"""What makes a run's numbers mean little is said: one case for each rule, and a run that breaks
none.
"""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from rayunlearn.analysis.coreset_table import coreset_table
from rayunlearn.analysis.run_warnings import (
    BASE_KNOWS_LITTLE,
    BASE_UNMEASURED,
    GOLD_KNOWS,
    GOLD_UNMEASURED,
    NO_CONTROL,
    NOTHING_TO_KEEP,
    run_warnings,
)
from rayunlearn.reporting.console import print_warnings
from rayunlearn.reporting.formats import as_json, markdown
from rayunlearn.reporting.html import page
from rayunlearn.reporting.sentences import warning_sentences
from rayunlearn.storage.run import Run, open_run, write_experiment, write_run_table
from tests import synthetic


def run_of(
    folder: Path,
    *,
    base: float | None,
    gold: float | None,
    controls: bool = True,
    unlearned: float | None = 0.05,
    retain: float = 0.9,
) -> Run:
    """A run of one unlearned model whose base, gold and control stand at these forget
    probabilities; None was not run.
    """
    rows = []
    for stage, value in (("base", base), ("gold", gold)):
        if value is not None:
            trial = synthetic.add_trial(
                folder, {"stage": stage}, {"forget": value, "retain": retain}
            )
            rows.append(synthetic.plan_row(trial, stage, "{}"))
    parts = [("grid", {"method.retain": "nll"}, unlearned)]
    parts += [("control", {"method.forget": "none", "method.retain": "nll"}, 0.9)] * controls
    for role, changes, left in parts:
        if left is not None:
            trial = synthetic.add_trial(folder, changes, {"forget": left, "retain": retain})
            rows.append(synthetic.plan_row(trial, role, "{}"))
    write_run_table(folder, "plan", rows)
    write_experiment(folder, synthetic.EXPERIMENT)
    return open_run(folder).in_memory()


@pytest.mark.parametrize(
    ("base", "gold", "controls", "rules"),
    [
        (0.9, 0.1, True, []),
        (None, 0.1, True, [BASE_UNMEASURED]),
        (0.1, 0.0, True, [BASE_KNOWS_LITTLE]),
        (0.9, None, True, [GOLD_UNMEASURED]),
        (0.9, 0.9, True, [GOLD_KNOWS]),
        # shown to differ, and by less than a tenth of the range
        (0.9, 0.84, True, [GOLD_KNOWS]),
        (0.5, 0.9, True, [GOLD_KNOWS]),
        (0.9, 0.1, False, [NO_CONTROL]),
        (0.1, None, False, [BASE_KNOWS_LITTLE, NO_CONTROL]),
    ],
)
def test_each_rule_is_found_on_a_run_that_breaks_it(
    tmp_path: Path, base: float | None, gold: float | None, controls: bool, rules: list[str]
) -> None:
    run = run_of(tmp_path, base=base, gold=gold, controls=controls)
    assert [warning.rule for warning in run_warnings(run, coreset_table(run))] == rules


@pytest.mark.parametrize(("retain", "is_little"), [(0.04, True), (0.06, False)])
def test_a_floor_under_what_base_does_not_know_is_said(
    tmp_path: Path, retain: float, is_little: bool
) -> None:
    run = run_of(tmp_path, base=0.9, gold=0.1, retain=retain)
    table = coreset_table(run)
    assert [w.rule for w in run_warnings(run, table)] == [NOTHING_TO_KEEP] * is_little
    for sentence in warning_sentences(run, table):
        assert sentence.startswith("Base hardly knows retain, probability 0.04")


def test_a_run_without_an_unlearned_model_has_nothing_to_warn_of(tmp_path: Path) -> None:
    run = run_of(tmp_path, base=None, gold=None, controls=False, unlearned=None)
    assert run_warnings(run, coreset_table(run)) == ()


def test_a_warning_is_on_the_page_in_the_terminal_and_in_every_form(tmp_path: Path) -> None:
    run = run_of(tmp_path, base=0.1, gold=0.0, controls=False)
    table = coreset_table(run)
    little, control = warning_sentences(run, table)
    assert "Base hardly knows the forget set, probability 0.1" in little
    assert control.startswith("No control: ") and "the retain loss nll" in control
    text = page(run)
    banner = text[text.index('class="banner"') :].partition("</div>")[0]
    assert "Base hardly knows the forget set" in banner and "No control" in banner
    out = StringIO()
    print_warnings(run, table, Console(file=out, width=80))
    assert out.getvalue().count("warning: ") == 2
    assert as_json(run)["warnings"] == [little, control]
    assert "Read the numbers with care" in markdown(run)
    sound = open_run(synthetic.write_run(tmp_path / "sound")).in_memory()
    assert 'class="banner"' not in page(sound)
