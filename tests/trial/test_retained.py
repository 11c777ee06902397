"""Which retain documents train, inside whole trials on an untrained model."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import polars as pl
import pytest
import torch

from rayunlearn.canonical import canonical_trial
from rayunlearn.config import Retain, Trial, Value, with_values
from rayunlearn.data.documents import Document
from rayunlearn.data.tokenize import Encoded, collate
from rayunlearn.errors import UserError
from rayunlearn.models.forward import token_nll
from rayunlearn.registry import check_trial
from rayunlearn.selectors.retain import RETAIN_SELECTORS
from rayunlearn.storage.run import open_run
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.coreset import RetainInputs, by_id, select_retain
from rayunlearn.trial.encodings import training_sequences
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.model_state import ModelState, reset_weights
from rayunlearn.trial.retained import retained_sequences, select_retained
from rayunlearn.trial.run import run_trial
from rayunlearn.trial.unlearn import objective_sides
from rayunlearn.trial.workspace import Workspace, validate_trial

QUICK: dict[str, Value] = {"train.length": 2, "train.batch_size": 4, "method.layer": 1}


@pytest.fixture(scope="module")
def workspace(workspace: Workspace) -> Workspace:
    """Twelve forget and sixteen retain documents of the domain corpus, and a model that knows
    nothing.
    """
    whole = workspace.corpus
    corpus = replace(
        whole,
        forget=whole.forget[:12],
        retain=whole.retain[:16],
        probes={k: v[:8] for k, v in whole.probes.items()},
    )
    return replace(workspace, corpus=corpus)


@pytest.fixture
def state(workspace: Workspace) -> ModelState:
    return reset_weights(workspace.base)


def trial_of(**values: Value) -> Trial:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return validate_trial(with_values(Trial(), QUICK | named))


@pytest.mark.parametrize("name", sorted(RETAIN_SELECTORS))
def test_every_retain_selector_keeps_the_exact_number_and_smaller_ratios_are_nested(
    name: str, workspace: Workspace, state: ModelState
) -> None:
    few, scores = select_retain(
        TrialContext(trial_of(retain__name=name, retain__ratio=0.25), workspace, state)
    )
    many, _ = select_retain(
        TrialContext(trial_of(retain__name=name, retain__ratio=0.5), workspace, state)
    )
    assert len(set(few)) == 4 and many[:4] == few and len(set(many)) == 8
    assert scores.shape == (16,) and bool(torch.isfinite(scores).all())
    assert all(
        torch.equal(state.model.state_dict()[key].cpu(), value)
        for key, value in state.pristine.items()
    )


def test_the_alignment_with_the_forget_set_is_a_cosine_of_whole_gradients(
    workspace: Workspace, state: ModelState
) -> None:
    """One backward pass per document, and one of the mean loss of the forget set."""
    trial = trial_of(retain__name="gradient_orthogonal", retain__ratio=0.25)
    context = TrialContext(trial, workspace, state)
    forget, retain = training_sequences(context)
    order = by_id(workspace.corpus.retain)

    def gradient(sequences: Sequence[Encoded]) -> torch.Tensor:
        total = torch.zeros(())
        for sequence in sequences:
            batch = collate([sequence])
            total = total + token_nll(state.model, batch).sum() / batch.labelled.sum()
        named = [p for p in state.model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(total / len(sequences), named, allow_unused=True)
        return torch.cat([g.flatten() for g in grads if g is not None])

    mean = gradient(forget)
    by_hand = [
        float(torch.cosine_similarity(gradient([retain[p]]), mean, dim=0)) for p in order[:3]
    ]
    inputs = RetainInputs(context, order, 16)
    assert inputs.forget_alignment[:3].tolist() == pytest.approx(by_hand, abs=1e-4)


def test_by_default_all_retain_documents_train_in_the_corpus_order(
    workspace: Workspace, state: ModelState
) -> None:
    context = TrialContext(trial_of(), workspace, state)
    _, retain = training_sequences(context)
    assert [s.ids for s in retained_sequences(context)] == [s.ids for s in retain]
    assert objective_sides(context, [0])[1].sequences == retain


def test_a_trial_records_what_it_was_shown_and_untouched_stays_untouched(
    workspace: Workspace, state: ModelState, tmp_path: Path
) -> None:
    trial = trial_of(retain__ratio=0.5, retain__general=0.25, retain__seed=3, select__ratio=0.5)
    assert run_trial(trial, workspace, tmp_path, "here", "1") == "complete"
    run = open_run(tmp_path)
    row = run.trials.collect().row(0, named=True)
    assert (row["n_kept"], row["n_retained"]) == (6, 8)
    rows = run.coresets.collect()
    counts = dict(rows.group_by("role").len().iter_rows())
    assert counts == {"forget": 6, "retain": 6, "general": 2}
    retain = rows.filter(role="retain").sort("rank")
    assert set(retain["doc_id"]) <= {d.doc_id for d in workspace.corpus.retain}
    assert retain["score"].to_list() == sorted(retain["score"].to_list(), reverse=True)
    assert rows.filter(role="general")["score"].null_count() == 2
    shown = set(rows["doc_id"])
    assert not shown & {d.doc_id for d in workspace.corpus.probes["untouched"]}
    context = TrialContext(trial, workspace, reset_weights(workspace.base))
    assert shown - set(rows.filter(role="forget")["doc_id"]) == {
        sequence.doc_id for sequence in objective_sides(context, [0])[1].sequences
    }


def test_general_text_of_a_file_leaves_out_what_the_corpus_has(
    workspace: Workspace, state: ModelState, tmp_path: Path
) -> None:
    """Three paragraphs are enough for 3 of 4 retain documents; where one of them is a probe of
    `untouched`, two are left and the trial is refused.
    """
    texts = tmp_path / "general.txt"
    texts.write_text("\n\n".join(f"general sentence {i}" for i in range(3)), encoding="utf-8")
    values: dict[str, Value] = {"retain.ratio": 0.25, "retain.general": 0.75}
    # the corpus of `validate_trial` is the whole one
    trial = check_trial(with_values(Trial(), values | {"retain.file": str(texts)}))
    chosen = select_retained(TrialContext(trial, workspace, state))
    assert sorted(d.answer for d in chosen.general) == [f"general sentence {i}" for i in range(3)]
    assert len(chosen.positions) == 1
    known = replace(
        workspace,
        corpus=replace(
            workspace.corpus,
            probes=workspace.corpus.probes
            | {"untouched": (Document(answer="general sentence 1"),)},
        ),
    )
    with pytest.raises(UserError, match=r"retain\.file must hold 3 documents that .*, got 2"):
        select_retained(TrialContext(trial, known, state))


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"retain.name": "nearst", "retain.ratio": 0.5}, "did you mean 'nearest'"),
        ({"retain.ratio": 0.0}, r"retain\.ratio must be in \(0, 1\], got 0\.0"),
        ({"retain.general": 1.5}, r"retain\.general must be in \[0, 1\], got 1\.5"),
        ({"retain.general": 0.5, "retain.file": "nowhere.txt"}, "retain.file must be a file"),
        (
            {
                "retain.ratio": 0.5,
                "retain.name": "keyword_neighbours",
                "retain.extractor": "judge",
            },
            r"retain\.extractor must be no extractor that asks a chat model",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_runs(values: dict[str, Value], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        validate_trial(with_values(Trial(), values))


def test_settings_without_effect_make_no_other_trial() -> None:
    def same(values: dict[str, Value]) -> Retain:
        return canonical_trial(with_values(Trial(), values), check=validate_trial).retain

    assert same({"retain.name": "nearest", "retain.seed": 4}) == Retain()
    assert same({"retain.ratio": 0.5, "method.retain": "none"}) == Retain()
    assert same({"retain.ratio": 0.5, "retain.extractor": "log_odds"}) == Retain(ratio=0.5)
    by_words = {"retain.name": "keyword_neighbours", "retain.ratio": 0.5}
    assert same(by_words | {"retain.extractor": "log_odds"}).extractor == "log_odds"
    # the control trains on the retain side alone, so the choice is its own
    assert same({"retain.ratio": 0.5, "method.forget": "none"}) == Retain(ratio=0.5)


def test_choices_are_other_trials_and_the_default_is_none() -> None:
    # the id of before there was a choice
    assert identify_trial(validate_trial(Trial())) == "955b7f9816e4042f"
    ids = {
        identify_trial(validate_trial(with_values(Trial(), values)))
        for values in chain(
            [{}, {"retain.ratio": 1.0}],
            [{"retain.ratio": 0.5}, {"retain.ratio": 0.5, "retain.name": "nearest"}],
            [{"retain.ratio": 0.5, "retain.seed": 1}, {"retain.general": 0.5}],
        )
    }
    assert len(ids) == 5


def test_scores_are_kept_and_shared_by_trials_that_differ_in_the_method(
    workspace: Workspace, state: ModelState
) -> None:
    trial = trial_of(retain__name="nearest", retain__ratio=0.25)
    select_retain(TrialContext(trial, workspace, state))
    stored = set((workspace.cache / "scores").iterdir())
    other = trial_of(retain__name="nearest", retain__ratio=0.5, method__forget="ga")
    select_retain(TrialContext(other, workspace, state))
    assert set((workspace.cache / "scores").iterdir()) == stored
    frames = [pl.read_parquet(f) for f in stored if f.suffix == ".parquet"]
    scorers = set(pl.concat(frames)["scorer"])
    assert "retain.nearest" in scorers
