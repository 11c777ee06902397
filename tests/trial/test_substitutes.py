"""Controls that put something else in the place of a coreset."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from rayunlearn.canonical import canonical_trial, without_effect
from rayunlearn.config import Trial, Value, with_values
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.errors import UserError
from rayunlearn.keywords.words import words_of
from rayunlearn.trial.context import TrialContext
from rayunlearn.trial.keywords import coreset_documents, coreset_sequences
from rayunlearn.trial.model_state import ModelState, reset_weights
from rayunlearn.trial.substitutes import substitute_documents, whole_words
from rayunlearn.trial.workspace import Workspace, validate_trial

FORGET = tuple(
    Document(prompt=f"What glows at {place}?", answer=f"At {place} the {thing} glows.", key=thing)
    for place, thing in (("dusk", "moss"), ("dawn", "reed"), ("noon", "pond"), ("night", "fern"))
)
FAR = tuple(Document(prompt=f"Who sang {n}?", answer=f"Kitace sang {n}.") for n in range(3))
CORPUS = Corpus(
    name="small",
    forget=FORGET,
    retain=(),
    probes={"forget": FORGET, "far": (*FAR, FORGET[0])},
    extra_training={},
)


@pytest.fixture(scope="module")
def state(workspace: Workspace) -> ModelState:
    return reset_weights(workspace.base)


def context_of(workspace: Workspace, state: ModelState, **changes: Value) -> TrialContext:
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return TrialContext(with_values(Trial(), values), replace(workspace, corpus=CORPUS), state)


def substitutes(
    workspace: Workspace, state: ModelState, coreset: Sequence[int], **changes: Value
) -> list[Document]:
    return substitute_documents(context_of(workspace, state, **changes), coreset)


def test_other_documents_are_of_the_split_each_once_and_never_forget_documents(
    workspace: Workspace, state: ModelState
) -> None:
    drawn = [
        substitutes(
            workspace,
            state,
            [2, 0],
            select__text="other_documents",
            select__other_split="far",
            select__seed=seed,
        )
        for seed in range(12)
    ]
    assert all(len({d.doc_id for d in part}) == 2 for part in drawn)
    assert {d.answer for part in drawn for d in part} == {d.answer for d in FAR}


@pytest.mark.parametrize(
    ("split", "coreset", "message"),
    [
        ("farther", [0], r"select\.other_split must be a split of the corpus \(far, forget\), got"),
        ("far", [0, 1, 2, 3], "split 'far' must have as many documents as the coreset, 4, got 3"),
        ("forget", [0], "as many documents as the coreset, 1, got 0"),
    ],
)
def test_a_split_that_cannot_give_them_is_an_error(
    workspace: Workspace, state: ModelState, split: str, coreset: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        substitutes(
            workspace,
            state,
            coreset,
            select__text="other_documents",
            select__other_split=split,
        )


def test_a_shuffled_answer_is_another_documents_and_each_is_used_once(
    workspace: Workspace, state: ModelState
) -> None:
    for seed in range(6):
        made = substitutes(
            workspace, state, range(4), select__text="shuffled_answers", select__seed=seed
        )
        assert [d.prompt for d in made] == [d.prompt for d in FORGET]
        assert sorted(d.answer for d in made) == sorted(d.answer for d in FORGET)
        assert all(d.answer != own.answer for d, own in zip(made, FORGET, strict=True))


def test_a_document_of_a_smaller_coreset_gets_the_answer_that_it_has_in_the_whole(
    workspace: Workspace, state: ModelState
) -> None:
    whole = substitutes(workspace, state, range(4), select__text="shuffled_answers")
    assert substitutes(workspace, state, [3, 1], select__text="shuffled_answers") == [
        whole[3],
        whole[1],
    ]


def test_random_text_has_as_many_words_and_none_of_the_documents_own_order(
    workspace: Workspace, state: ModelState
) -> None:
    made = substitutes(workspace, state, [0, 1], select__text="random_text")
    vocabulary = set(whole_words(state.tokenizer))
    for document, own in zip(made, FORGET[:2], strict=True):
        for new, old in ((document.prompt, own.prompt), (document.answer, own.answer)):
            assert len(words_of(new)) == len(words_of(old)) and new != old
            assert set(new.split()) <= vocabulary
    again = substitutes(workspace, state, [0, 1], select__text="random_text", select__seed=1)
    assert again != made


def test_the_trial_trains_on_the_substitutes(workspace: Workspace, state: ModelState) -> None:
    context = context_of(
        workspace, state, select__text="other_documents", select__other_split="far"
    )
    positions, sequences, share = coreset_sequences(context, [1, 2])
    documents = coreset_documents(context, [1, 2])
    assert positions == [1, 2] and share > 0
    assert [s.doc_id for s in sequences] == [d.doc_id for d in documents]
    assert {d.answer for d in documents} < {d.answer for d in FAR}


def test_other_documents_need_a_split_and_only_they_keep_it() -> None:
    with pytest.raises(UserError, match=r"select\.other_split must name a split when"):
        with_values(Trial(), {"select.text": "other_documents"})
    named = with_values(Trial(), {"select.other_split": "far", "select.seed": 4})
    assert canonical_trial(named, check=validate_trial).select.other_split == ""
    control = with_values(named, {"select.text": "other_documents"})
    kept = without_effect(control).select
    assert (kept.other_split, kept.seed) == ("far", 4)
    with pytest.raises(UserError, match=r"must be a split of the corpus .*, got 'far'"):
        validate_trial(control)
