"""Fixtures that several files share, and how tests are dealt out to processes."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# before torch is imported, and for every process that a test starts: as a trial on a CPU runs, and
# models this small only wait for a second thread
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers have niceness 15 of their own accord; the tests that wait for them would wait for
# all other tests on the same cores
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest
import torch
from hypothesis import settings

from rayunlearn.config import Trial
from rayunlearn.data.documents import Corpus
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.models.load import save_model
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.train.teach import training_texts
from rayunlearn.trial import model_state
from rayunlearn.trial.workspace import Workspace
from tests.trained_models import trained_model

# a property is not wrong because the machine is busy
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
torch.set_num_threads(1)


class Bed(NamedTuple):
    """A prepared synthetic dataset: the trial that asked for it, its corpus, and the folders of the
    two trained models.
    """

    trial: Trial
    corpus: Corpus
    base: Path
    gold: Path


def prepared(trial: Trial, folder: Path) -> Bed:
    """Base and gold of the trial in `folder`, from the store of trained models."""
    corpus = generate_dataset(trial.data)
    bed = Bed(trial, corpus, folder / "base", folder / "gold")
    # of two workers that want the same dataset first, each trains one model of it
    roles = ("gold", "base") if os.environ.get("PYTEST_XDIST_WORKER") == "gw1" else ("base", "gold")
    for role in roles:
        trained_model(trial, corpus, role, folder / role)
    return bed


@pytest.fixture(scope="session")
def domain_bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """The tiny domain dataset with its default redundancy of 20; read it, never write to it. About
    30 s of training where the store does not have it.
    """
    return prepared(Trial(), tmp_path_factory.mktemp("domain_bed"))


@pytest.fixture(scope="module")
def domain_workspace(
    domain_bed: Bed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workspace]:
    """The domain dataset's models with an empty cache."""
    base, gold = str(domain_bed.base), str(domain_bed.gold)
    yield Workspace(domain_bed.corpus, base, gold, "taught", tmp_path_factory.mktemp("cache"))
    model_state.load_model_state.cache_clear()


@pytest.fixture(scope="session")
def untaught_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three models that know nothing, `base`, `gold` and `theirs`, with the vocabulary
    of the domain corpus; read it, never write to it.
    """
    folder, trial = tmp_path_factory.mktemp("untaught"), Trial()
    corpus = generate_dataset(trial.data)
    probes = [document for split in corpus.probes.values() for document in split]
    documents = [*corpus.forget, *corpus.retain, *probes]
    tokenizer = build_tokenizer(training_texts(documents, trial.data.template))
    for seed, name in enumerate(("base", "gold", "theirs")):
        save_model(build_model("tiny", len(tokenizer), seed=seed), tokenizer, folder / name)
    return folder


@pytest.fixture(scope="module")
def workspace(
    untaught_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workspace]:
    """The domain corpus with a base model that knows nothing, no gold and an empty cache: enough to
    see that the machinery is right.
    """
    base, cache = str(untaught_models / "base"), tmp_path_factory.mktemp("cache")
    yield Workspace(generate_dataset(Trial().data), base, "", "untaught", cache)
    model_state.load_model_state.cache_clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes, each takes the longest groups first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        from tests.scheduling import place_of

        items.sort(key=lambda item: place_of(item.nodeid))


def pytest_collection_finish() -> None:
    """What is loaded by now stays until the end: the collector need not look through it again and
    again.
    """
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How tests are dealt out to processes."""
    from tests.scheduling import GroupScheduling

    return GroupScheduling(config, log)


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
