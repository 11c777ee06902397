"""Fixtures that several files share."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

from rayunlearn.config import Trial
from rayunlearn.data.documents import Corpus
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.train.teach import train_base_or_gold

# a property is not wrong because the machine is busy
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# as a trial on a CPU runs; models this small only wait for a second thread
torch.set_num_threads(1)


class Bed(NamedTuple):
    """A prepared test bed: the trial that asked for it, its corpus, and the folders of the two
    taught models.
    """

    trial: Trial
    corpus: Corpus
    base: Path
    gold: Path


def silent(_step: int, _steps: int) -> None:
    """A progress callback that says nothing."""


def prepared(trial: Trial, folder: Path) -> Bed:
    """Base and gold of the trial, taught in `folder`."""
    corpus = generate_dataset(trial.data)
    bed = Bed(trial, corpus, folder / "base", folder / "gold")
    train_base_or_gold(trial, corpus, "base", bed.base, silent)
    train_base_or_gold(trial, corpus, "gold", bed.gold, silent)
    return bed


@pytest.fixture(scope="session")
def domain_bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """The tiny domain bed with its default redundancy of 20; read it, never write to it. About 30
    s, once per session.
    """
    return prepared(Trial(), tmp_path_factory.mktemp("domain_bed"))


def pytest_runtest_setup() -> None:
    """Every test draws from the same stream, whatever ran before it."""
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many accidents of which kinds were survived, where tests that passed noted some
    (`record_property("survived", {kind: number})`).
    """
    survived: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        survived.update(dict(report.user_properties).get("survived", {}))
    if survived:
        kinds = ", ".join(
            f"{number} {kind.replace('_', ' ')}" for kind, number in sorted(survived.items())
        )
        terminalreporter.write_line(f"{survived.total()} faults survived: {kinds}")
