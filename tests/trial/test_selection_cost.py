"""Selections that would take hours are refused when a trial is checked, before any is scheduled."""

from dataclasses import replace

import pytest

from rayunlearn.config import Data, Model, Trial, with_values
from rayunlearn.data.documents import Corpus
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.errors import UserError
from rayunlearn.trial import workspace
from rayunlearn.trial.workspace import validate_trial


@pytest.fixture
def large_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 forget documents instead of those that the trial's data section names."""
    corpus = generate_dataset(Trial().data)
    large = replace(corpus, forget=corpus.forget[:1] * 200_000)

    def corpus_of(_data: Data, _model: Model) -> Corpus:
        return large

    monkeypatch.setattr(workspace, "corpus_of", corpus_of)


@pytest.mark.usefixtures("large_corpus")
def test_pairs_of_200_000_documents_are_refused_with_an_estimate_before_anything_runs() -> None:
    trial = with_values(Trial(), {"select.name": "facility_location", "select.ratio": 0.05})
    with pytest.raises(UserError, match="facility_location of 12,500 from 200,000 documents must"):
        validate_trial(trial)


@pytest.mark.usefixtures("large_corpus")
@pytest.mark.parametrize("name", ["random", "moderate", "keyword_coverage", "k_center", "herding"])
def test_selectors_that_need_no_pairs_select_from_200_000_documents(name: str) -> None:
    validate_trial(with_values(Trial(), {"select.name": name, "select.ratio": 0.05}))
