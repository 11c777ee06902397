"""Rows from outside: of an experiment file, of a file beside it, of an installed package."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayunlearn.config import Method, Trial, trial_id
from rayunlearn.errors import UserError
from rayunlearn.methods.forget import FORGET
from rayunlearn.metrics.evaluate import chosen_metrics
from rayunlearn.metrics.table import METRICS
from rayunlearn.planning.backend import unlearning_backend
from rayunlearn.plugins.load import (
    Plugin,
    _installed_files,
    forget_plugin,
    load_installed_plugins,
    load_plugin,
    load_plugin_file,
    plugins,
)
from rayunlearn.registry import check_trial
from rayunlearn.trial.code import code_of, plugin_code

HINGE = '''
import torch
from torch import Tensor
from rayunlearn.methods.forget import ForgetLoss
from rayunlearn.ranges import Positive


def below(token_nll: Tensor, margin: float) -> Tensor:
    return torch.relu(margin - token_nll)


def hinge(token_nll: Tensor, labelled: Tensor, *, margin: Positive = 3.0) -> Tensor:
    """Up to a margin."""
    return below(token_nll, margin)[labelled].mean()


def unused(token_nll: Tensor) -> Tensor:
    return token_nll.sum()


ROWS = (ForgetLoss(hinge, "up to a margin", "ours", "mean max(0, m - NLL)", "labels"),)
'''
TRIAL = Trial(method=Method(forget="hinge"))


@pytest.fixture(autouse=True)
def no_plugin_stays() -> Iterator[None]:
    yield
    for plugin in plugins():
        forget_plugin(plugin.origin)


def test_a_row_of_a_plugin_is_one_of_its_table_and_its_hyperparameter_a_setting() -> None:
    load_plugin(Plugin("/there/hinge.py", HINGE))
    assert FORGET["hinge"].title == "up to a margin"
    assert dict(check_trial(TRIAL).options)["hinge.margin"] == 3.0
    with pytest.raises(UserError, match=r"hinge.margin must be > 0, got -1"):
        check_trial(Trial(method=Method(forget="hinge"), options=(("hinge.margin", -1.0),)))
    forget_plugin("/there/hinge.py")
    assert "hinge" not in FORGET


def test_a_cheap_metric_of_a_plugin_is_among_the_cheap_ones() -> None:
    source = """
from rayunlearn.metrics.table import Metric

def first_nll(token_nll):
    return float(token_nll[0])

ROWS = (Metric(first_nll, "NLL of the first token", "ours", "nats", 0, 100, "lower"),)
"""
    load_plugin(Plugin("/there/first.py", source))
    assert "first_nll" in METRICS and "first_nll" in chosen_metrics("cheap")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (("ROWS = (", "ROWS = (1, "), "must be a tuple of rows"),
        (("hinge", "npo"), "must have a name of its own; there is a ForgetLoss, got 'npo'"),
        (("import torch", "import torch_of_another"), "must run without an error"),
        (("ROWS", "LOSSES"), "must define ROWS"),
    ],
)
def test_a_plugin_that_cannot_be_one_is_refused(change: tuple[str, str], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        load_plugin(Plugin("/there/hinge.py", HINGE.replace(*change)))
    assert "hinge" not in FORGET and plugins() == ()


def test_an_input_that_there_is_not_is_refused_before_anything_runs() -> None:
    """As `plan` does: the page on own methods once named a tensor that there was not."""
    load_plugin(Plugin("/there/hinge.py", HINGE.replace("labelled: Tensor", "labels_mask: Tensor")))
    with pytest.raises(UserError, match="unknown input of a loss 'labels_mask'"):
        unlearning_backend().check(TRIAL)


def test_the_source_of_a_plugin_is_part_of_the_identity_and_its_comments_are_not() -> None:
    def identity(source: str) -> str:
        load_plugin(Plugin("/there/hinge.py", source))
        trial = check_trial(TRIAL)
        _ = code_of(trial)
        return trial_id(trial, "corpus", "model", plugin_code(trial))

    first = identity(HINGE)
    assert identity("# a comment\n" + HINGE.replace("Up to a margin.", "Up to it.")) == first
    # what the loss does not use
    assert identity(HINGE.replace("token_nll.sum()", "-token_nll.sum()")) == first
    # what it uses of the same file
    assert identity(HINGE.replace("margin - token_nll", "token_nll - margin")) != first
    plain = check_trial(Trial())
    assert plugin_code(plain) == {} and "npo" in code_of(plain)


def test_a_worker_is_sent_the_plugins_source(tmp_path: Path) -> None:
    """A process that has only the pickled work and cannot read the file."""
    load_plugin(Plugin("/there/hinge.py", HINGE))
    file = tmp_path / "work.pickle"
    file.write_bytes(pickle.dumps((unlearning_backend(), check_trial(TRIAL))))
    code = (
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "work, trial = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "work.preload()\n"
        "print(dict(work.check(trial).options)['hinge.margin'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "3.0\n", done.stderr


def test_an_installed_package_brings_rows_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "losses_of_mine.py").write_text(HINGE)
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rayunlearn]\nmine = losses_of_mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _installed_files.cache_clear()
    load_installed_plugins()
    _installed_files.cache_clear()
    assert FORGET["hinge"].source == "ours"


def test_a_file_is_named_by_plugin(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--plugin must be a Python file that exists"):
        load_plugin_file(tmp_path / "absent.py")
    (tmp_path / "hinge.py").write_text(HINGE)
    load_plugin_file(tmp_path / "hinge.py")
    # and again, changed
    (tmp_path / "hinge.py").write_text(HINGE.replace("up to a margin", "up to it"))
    load_plugin_file(tmp_path / "hinge.py")
    assert FORGET["hinge"].title == "up to it" and len(plugins()) == 1
