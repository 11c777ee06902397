"""Emphasis changes the question's text: which words, in which form, and never the answer's."""

import pytest

from rayunlearn.attribution.emphasis import (
    EMPHASIS_FORMS,
    added_words,
    chosen_words,
    random_words,
    words_of_answer,
)
from rayunlearn.config import Data, Explain, Trial
from rayunlearn.data.documents import Document
from rayunlearn.data.load import load_corpus
from rayunlearn.keywords.words import words_of
from rayunlearn.models.scratch import build_tokenizer
from rayunlearn.train.teach import starting_point, training_texts

WORDING = Explain().wording
PROMPT = "What colour does Tubril glow?"
WORDS = [word for word in words_of(PROMPT) if word.key in ("colour", "tubril")]


def documents() -> list[Document]:
    return [
        d
        for name in ("domain", "people")
        for part in load_corpus(Data(name=name)).probes.values()
        for d in part
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("named_first", "Focus on colour, Tubril. What colour does Tubril glow?"),
        ("quoted", 'What " colour " does " Tubril " glow?'),
        ("repeated_last", "What colour does Tubril glow? Focus on colour, Tubril."),
        (
            "named_and_repeated",
            "Focus on colour, Tubril. What colour does Tubril glow? Focus on colour, Tubril.",
        ),
    ],
)
def test_the_four_forms_as_they_read(name: str, text: str) -> None:
    assert EMPHASIS_FORMS[name].function(PROMPT, WORDS, WORDING) == text


def test_the_words_that_help_most_are_chosen_up_to_half_of_the_prompt_and_none_of_the_answer() -> (
    None
):
    """Five words, so two at most: glow (3) and Tubril (2). Where the answer says "glow", colour (1)
    takes its place.
    """
    scores, key = [0.0, 1.0, 0.0, 2.0, 3.0], [False, True, False, True, True]
    assert [w.key for w in chosen_words(PROMPT, scores, key, "amber")] == ["tubril", "glow"]
    assert [w.key for w in chosen_words(PROMPT, scores, key, "a glow of amber")] == [
        "colour",
        "tubril",
    ]


def test_a_word_that_stands_twice_is_chosen_once_where_it_helps_most() -> None:
    prompt = "red or red or blue now"
    chosen = chosen_words(
        prompt, [1.0, 0.0, 2.0, 0.0, 3.0, 0.0], [True, False, True, False, True, False], "x"
    )
    assert [(w.key, w.start) for w in chosen] == [("red", 7), ("blue", 14)]


def test_random_words_are_as_many_others_and_follow_from_the_seed() -> None:
    key = [False, True, False, True, False]
    drawn = {
        seed: [w.key for w in random_words(PROMPT, WORDS, key, "amber", seed)]
        for seed in "abcdefgh"
    }
    assert all(
        len(words) == 2 and not {"colour", "tubril"} & set(words) for words in drawn.values()
    )
    assert len({tuple(words) for words in drawn.values()}) > 1
    assert drawn["a"] == [w.key for w in random_words(PROMPT, WORDS, key, "amber", "a")]


def test_answer_words_leave_function_words_out_unless_there_are_no_others() -> None:
    assert (
        words_of_answer("In the caves of Oslo.") == {"caves", "oslo"}
        and words_of_answer("Yes, it is.") == {"yes"}
        and words_of_answer("it is") == {"it", "is"}
    )


@pytest.mark.parametrize("name", EMPHASIS_FORMS)
def test_no_form_adds_a_word_of_the_answer_to_any_question_of_the_beds(name: str) -> None:
    """Every word counts as key and as helpful, the answer's own too: what is added must still not
    hold it.
    """
    for d in documents():
        n = len(words_of(d.prompt))
        for chosen in (
            chosen_words(d.prompt, range(n), [True] * n, d.answer),
            random_words(d.prompt, WORDS, [False] * n, d.answer, d.doc_id),
        ):
            added = added_words(d.prompt, EMPHASIS_FORMS[name].function(d.prompt, chosen, WORDING))
            assert not words_of_answer(d.answer) & set(added)
            assert words_of_answer(d.answer)


def test_what_is_added_to_a_text_counts_words_that_stand_there_more_often() -> None:
    assert added_words("a b a", "a x b a a") == ["x", "a"]


@pytest.mark.parametrize("name", EMPHASIS_FORMS)
def test_a_vocabulary_made_from_nothing_knows_every_emphasised_question(name: str) -> None:
    trial = Trial(data=Data(name="people"))
    corpus = load_corpus(trial.data)
    tokenizer = starting_point(trial, corpus)[1]
    for d in corpus.probes["forget"]:
        words = words_of(d.prompt)
        ids = tokenizer.encode(
            trial.data.template.replace(
                "{prompt}", EMPHASIS_FORMS[name].function(d.prompt, words, WORDING)
            )
        )
        assert tokenizer.unk_token_id not in ids
    bare = build_tokenizer(training_texts(corpus.probes["forget"], trial.data.template))
    # so the test can fail
    assert bare.unk_token_id in bare.encode(' Focus on "')
