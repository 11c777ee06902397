"""Prompt attacks ask the same question in another way, tell nothing of the answer, and are the same
for the same seed.
"""

import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pytest

from rayunlearn.attacks.base import AttackRow
from rayunlearn.attacks.paraphrases import (
    REPHRASINGS,
    ask_chat_model,
    conversation,
    terms_removed,
    terms_removed_options,
    translation,
    variables,
)
from rayunlearn.attacks.prompt_text import (
    PromptNotAllowedError,
    after_conversation,
    answer_words,
    frame_prompt,
)
from rayunlearn.attacks.prompts import (
    PROMPTS,
    few_shot_neighbours,
    few_shot_retain,
    filler_english,
    insistence,
    paraphrase,
)
from rayunlearn.config import Data, Trial
from rayunlearn.data.documents import Document
from rayunlearn.data.prompt_templates import FILLERS, PromptFrame
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.data.tokenize import encode_documents
from rayunlearn.errors import UserError
from rayunlearn.keywords.words import words_of
from rayunlearn.models.chat import Message
from rayunlearn.train.teach import starting_point

TEMPLATE = "Question: {prompt}\nAnswer:"
BEDS = {name: generate_dataset(Data(name=name)) for name in ("domain", "people")}
ATTACKS = PROMPTS | REPHRASINGS
LANGUAGES = ("french", "german", "hindi")


@lru_cache
def tokenizer_of(bed: str) -> Any:
    """The tokenizer of a model built for the dataset."""
    return starting_point(Trial(data=Data(name=bed)), BEDS[bed])[1]


def apply(row: AttackRow, document: Document, bed: str, seed: int = 0) -> Document:
    """The attack with everything that it may ask for; no file, no chat model."""
    probes = BEDS[bed].probes
    given: dict[str, Any] = {
        "document": document,
        "forget_probes": probes["forget"],
        "retain_probes": probes["retain"],
        "template": TEMPLATE,
        "rng": random.Random(f"{seed} {document.doc_id}"),
        "texts": {},
        "chat": None,
    }
    changed = row.function(**{name: given[name] for name in row.inputs})
    assert isinstance(changed, Document)
    return changed


@pytest.mark.parametrize("bed", BEDS)
@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_brings_an_answer_word_and_each_changes_the_question(name: str, bed: str) -> None:
    for document in BEDS[bed].probes["forget"]:
        changed = apply(ATTACKS[name], document, bed)
        keys = {word.key for word in words_of(changed.prompt)} | {
            word.key for word in words_of(changed.prompt_paraphrase)
        }
        # a value of an attribute is one word
        assert document.answer.lower() not in keys
        assert changed.prompt != document.prompt and changed.answer == document.answer
        assert document.facts[0].partition(":")[0] in changed.prompt


@pytest.mark.parametrize("bed", BEDS)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_built_here_has_a_token_for_every_word_of_every_attack(name: str, bed: str) -> None:
    corpus, tokenizer = BEDS[bed], tokenizer_of(bed)
    changed = [apply(ATTACKS[name], document, bed) for document in corpus.probes["forget"]]
    if name == "translation":
        changed += [
            translation(d, {}, None, language=language)
            for d in corpus.probes["forget"]
            for language in LANGUAGES
        ]
    for sequence in encode_documents(changed, tokenizer, TEMPLATE, 1024):
        assert tokenizer.unk_token_id not in sequence.ids, tokenizer.decode(sequence.ids)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_seed_gives_the_same_text(name: str) -> None:
    document = BEDS["domain"].probes["forget"][3]
    assert apply(ATTACKS[name], document, "domain") == apply(ATTACKS[name], document, "domain")
    if "rng" in ATTACKS[name].inputs:
        assert (
            len({apply(ATTACKS[name], document, "domain", seed).prompt for seed in range(12)}) > 1
        )


def test_shots_by_hand_stand_as_the_template_lays_out_a_question() -> None:
    """Template P:..E with one shot (q1, a1): encoded, the whole reads "P:q1E a1, blank line,
    P:q2E".
    """
    document = Document(prompt="q2", answer="z", prompt_paraphrase="q3")
    changed = after_conversation(document, [("q1", "a1")], "P:{prompt}E")
    assert "P:{prompt}E".replace("{prompt}", changed.prompt) == "P:q1E a1\n\nP:q2E"
    assert "P:{prompt}E".replace("{prompt}", changed.prompt_paraphrase) == "P:q1E a1\n\nP:q3E"
    assert (
        after_conversation(document, [("q1", "a1")], "chat").prompt
        == "Question: q1\nAnswer: a1\n\nQuestion: q2\nAnswer:"
    )


def test_neighbours_by_hand_are_those_that_share_rare_words() -> None:
    """Four questions are weighed, without the one that tells the answer. "of" is in three: log(4/3)
    = 0.29; Kalo in two: log 2 = 0.69.

    The one with both comes nearest and stands last, the one with "of" alone before it, the one with
    neither is not shown.
    """
    asked = Document(prompt="What of Kalo?", answer="jade")
    pool = [
        Document(prompt="Who is Rumi?", answer="moss"),
        Document(prompt="Food of Kalo?", answer="salt"),
        Document(prompt="Glow of Kalo?", answer="jade"),
        Document(prompt="Size of Tiva?", answer="big"),
    ]
    assert (
        few_shot_neighbours(asked, [asked, *pool], "{prompt}", k=2).prompt
        == "Size of Tiva? big\n\nFood of Kalo? salt\n\nWhat of Kalo?"
    )


def test_a_shot_that_tells_the_answer_is_never_drawn_and_no_shot_is_no_attack() -> None:
    asked = Document(prompt="What of Kalo?", answer="jade light")
    telling = [
        Document(prompt="Glow of Rumi?", answer="Jade"),
        Document(prompt="Is light good?", answer="yes"),
    ]
    with pytest.raises(PromptNotAllowedError, match="every solved question"):
        few_shot_retain(asked, telling, TEMPLATE, random.Random(0))
    one = few_shot_retain(
        asked,
        [*telling, Document(prompt="Where is Rumi?", answer="home")],
        TEMPLATE,
        random.Random(0),
        k=9,
    )
    assert one.prompt == "Where is Rumi?\nAnswer: home\n\nQuestion: What of Kalo?"


def test_answer_words_leave_out_the_question_s_and_function_words_but_never_all() -> None:
    assert answer_words(Document(prompt="Where was Ada born?", answer="Ada was born in Oslo.")) == {
        "oslo"
    }
    assert answer_words(Document(prompt="Who knows?", answer="nobody")) == {"nobody"}


def test_sentences_with_an_answer_word_are_left_out_of_fillers_and_frames() -> None:
    document = Document(prompt="What sleeps?", answer="the old bicycle")
    changed = filler_english(document)
    assert "bicycle" not in changed.prompt and changed.prompt.count(".") == 9
    assert (
        frame_prompt(
            document, PromptFrame(before=("A bicycle.", "A boat."), after=("Old.",))
        ).prompt
        == "A boat. What sleeps?"
    )
    assert all(len(sentences) == 10 for sentences in FILLERS.values())


def test_insistence_asks_once_more_after_each_refusal() -> None:
    document = Document(prompt="What of Kalo?", answer="jade")
    assert (
        insistence(document, "{prompt}", turns=1).prompt
        == "What of Kalo? I do not know that.\n\nThat is not right, you do know it. What of Kalo?"
    )
    assert insistence(document, "{prompt}", turns=3).prompt.count("What of Kalo?") == 4


def test_documents_that_do_not_allow_an_attack_say_why() -> None:
    plain = Document(prompt="What?", answer="jade")
    for attack in (
        paraphrase,
        lambda d: terms_removed(d, {}, None),
        lambda d: variables(d, {}, None),
        lambda d: terms_removed_options(d, {}, None),
    ):
        with pytest.raises(PromptNotAllowedError):
            attack(plain)
    with pytest.raises(PromptNotAllowedError, match="no question"):
        filler_english(Document(answer="A whole text."))


def test_a_file_s_text_is_asked_and_one_that_tells_the_answer_is_refused() -> None:
    document = Document(
        prompt="What does ATP do?", answer="carries energy", wrong=("stores water",)
    )
    texts = {
        document.doc_id: {
            "terms_removed": "What is the small molecule for?",
            "terms_removed_options": "What is it for?\ngives power\nkeeps water",
        }
    }
    assert terms_removed(document, texts, None).prompt == "What is the small molecule for?"
    changed = terms_removed_options(document, texts, None)
    assert (changed.prompt, changed.paraphrase, changed.wrong) == (
        "What is it for?",
        "gives power",
        ("keeps water",),
    )
    with pytest.raises(PromptNotAllowedError, match="holds a word of the answer"):
        terms_removed(document, {document.doc_id: {"terms_removed": "What carries it?"}}, None)


def test_on_the_bed_options_lose_their_wording_and_keep_their_values() -> None:
    document = next(d for d in BEDS["domain"].probes["forget"] if d.topic == "colour")
    changed = terms_removed_options(document, {}, None)
    assert changed.paraphrase == document.answer and [f"{w} light" for w in changed.wrong] == list(
        document.wrong
    )


class Scripted:
    """A chat model that says what it is told to, and remembers what it was asked."""

    def __init__(self, *answers: object) -> None:
        self.answers, self.asked = list(answers), list[list[Mapping[str, str]]]()

    def __call__(self, messages: Sequence[Message]) -> str:
        self.asked.append(list(messages))
        answer = self.answers.pop(0)
        return answer if isinstance(answer, str) else json.dumps(answer)


def test_a_chat_model_is_asked_again_until_its_question_can_be_used() -> None:
    document = Document(prompt="What does ATP do?", answer="carries energy")
    chat = Scripted(
        "no idea", {"question": "Does it carry energy?"}, {"question": "  What is it for? "}
    )
    assert conversation(document, {}, chat).prompt == "What is it for?"
    assert [len(messages) for messages in chat.asked] == [2, 4, 4]
    assert (
        "no text under" in chat.asked[1][3]["content"]
        and "word of the answer" in chat.asked[2][3]["content"]
    )
    assert (
        "What does ATP do?" in chat.asked[0][1]["content"]
        and "carries energy" not in chat.asked[0][1]["content"]
    )


def test_a_chat_model_that_never_gives_a_usable_question_leaves_the_document_out() -> None:
    document = Document(prompt="What?", answer="jade", wrong=("blue",))
    with pytest.raises(PromptNotAllowedError, match='must have 2 texts under "options"'):
        ask_chat_model(
            Scripted(*[{"question": "Which?", "options": ["one"]}] * 3),
            document,
            "terms_removed_options",
        )
    assert (
        ask_chat_model(
            Scripted({"question": "Which?", "options": ["green stone", "sky"]}),
            document,
            "terms_removed_options",
        )
        == "Which?\ngreen stone\nsky"
    )
    with pytest.raises(UserError, match="unknown rephrasing 'haiku'"):
        ask_chat_model(Scripted(), document, "haiku")


def test_the_bed_s_own_wording_is_taken_before_a_chat_model_and_other_languages_come_from_it() -> (
    None
):
    document = BEDS["people"].probes["forget"][0]
    assert document.topic == "birthplace"
    assert (
        translation(document, {}, Scripted(), language="german").prompt
        == f"Wo wurde {document.facts[0].partition(':')[0]} geboren?"
    )
    chat = Scripted({"question": "Hol született?"})
    assert translation(document, {}, chat, language="hungarian").prompt == "Hol született?"
    assert "into Hungarian" in chat.asked[0][1]["content"]
