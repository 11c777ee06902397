"""Text to ids, swept over every kind of tokenizer and every family's chat template: the ids are the
whole text's, the labels are the answer and its end, BOS is where the tokenizer has it.

The other side of each comparison is transformers': `apply_chat_template` of the whole conversation,
its mask of assistant tokens, `char_to_token`. For the synthetic datasets' own tokenizers it is the
rule that stood here before, which must hold for them to the last id.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rayunlearn.config import Data
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.data.tokenize import (
    Encoded,
    align,
    begin_ids,
    check_chat_template,
    count_cut,
    cut_note,
    encode_documents,
    encode_pair,
    join,
    opening_ids,
    prompt_text,
)
from rayunlearn.errors import UserError
from rayunlearn.models.load import load_model
from rayunlearn.models.scratch import build_tokenizer
from rayunlearn.models.tensor_cache import pack_tensors, sequences_digest, unpack_tensors
from rayunlearn.train.teach import training_texts
from tests.tokenizer_kinds import CHATS, KINDS, PAIRS, chat_tokenizer, tokenizer_of

# they give back every text to the letter
LOSSLESS = ("gpt2", "bloom", "llama3", "qwen", "mistral", "silent", "phi3", "llama", "gemma")
TEMPLATES = (
    "Question: {prompt}\nAnswer:",
    "{prompt}",
    "{prompt} ",
    "### Instruction:\n{prompt}\n### Response:\n",
    "[INST] {prompt} [/INST]",
)
WHOLE = 10_000


def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def labels(sequence: Encoded) -> tuple[int, ...]:
    return sequence.ids[sequence.start :]


def words(sequence: Encoded) -> tuple[int, ...]:
    """The labels without what closes them."""
    return sequence.ids[sequence.start : len(sequence.ids) - sequence.n_end]


def ids_of(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def positions_of(
    text: str, first: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, list[tuple[int, int]]]:
    """The token that holds the character `first`, and every token's characters."""
    if tokenizer.is_fast:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return found.char_to_token(first), found["offset_mapping"]
    spans, end = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids_of(text, tokenizer)):
        spans.append((end, end + len(token)))
        end += len(token)
    return next(at for at, (a, b) in enumerate(spans) if a <= first < b), spans


# ---- chat templates


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_conversation_begins_with_the_opening(kind: str, chat: str) -> None:
    """And with nothing longer: conversations differ right behind it."""
    tokenizer = chat_tokenizer(kind, chat)
    opening = opening_ids(tokenizer)
    texts = [encode_pair("d", p, "yes", tokenizer, "chat", WHOLE) for p in ("Who?", "seven", "9.")]
    assert all(text.ids[: len(opening)] == opening for text in texts)
    assert len({text.ids[len(opening)] for text in texts}) > 1


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_answer_s_part_of_the_encoded_conversation(kind: str, chat: str) -> None:
    """Ids are those of `apply_chat_template` of both turns up to the end of the answer's; labels
    begin with the token of the answer's first character, before which at most the blank stands that
    the template puts between its opening and an answer, and end with the turn.
    """
    tokenizer, form = chat_tokenizer(kind, chat), CHATS[chat]
    for prompt, answer in PAIRS:
        sequence = encode_pair("d", prompt, answer, tokenizer, "chat", WHOLE)
        text = tokenizer.apply_chat_template(conversation(prompt, answer), tokenize=False)
        whole = tokenizer.apply_chat_template(conversation(prompt, answer), return_dict=True)
        assert list(sequence.ids) == whole["input_ids"][: len(sequence.ids)], (prompt, answer)
        at, spans = positions_of(text, text.rindex(answer), tokenizer)
        assert sequence.start <= at
        between = [text[slice(*spans[p])] for p in range(sequence.start, at)]
        assert all(part.strip() == "" for part in between) and (not between or form.blank == " ")
        if tokenizer.is_fast:
            marked = tokenizer.apply_chat_template(
                conversation(prompt, answer), return_dict=True, return_assistant_tokens_mask=True
            )["assistant_masks"]
            assert marked.index(1) == at
            # one character may be several tokens (bytes), of which the mask has the first
            last = len(marked) - 1 - marked[::-1].index(1)
            assert spans[len(sequence.ids) - 1] == spans[last]
            assert spans[len(sequence.ids) :][:1] != [spans[last]]
        # thoughts are given; GPT-2's splitting takes two line ends apart once a word follows them
        if chat != "qwen3" and (kind, chat) != ("words", "llama3"):
            opened = ids_of(prompt_text(prompt, tokenizer, "chat"), tokenizer)
            assert opened[: sequence.start] == list(sequence.ids[: sequence.start])


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("kind", [*LOSSLESS, "Characters"])
def test_labels_write_the_answer_and_close_it_as_the_template_does(kind: str, chat: str) -> None:
    tokenizer, form = chat_tokenizer(kind, chat), CHATS[chat]
    end = form.end.replace("EOS", str(tokenizer.eos_token))
    for prompt, answer in PAIRS:
        sequence = encode_pair("d", prompt, answer, tokenizer, "chat", WHOLE)
        assert tokenizer.decode(words(sequence)).strip() == answer
        closing = sequence.ids[len(sequence.ids) - sequence.n_end :]
        assert tokenizer.decode(closing).strip() == end.strip()
        if end.strip() in tokenizer.get_vocab():
            assert closing[-1] == tokenizer.convert_tokens_to_ids(end.strip())


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_begins_as_its_template_says_and_not_as_the_tokenizer_adds(
    kind: str,
) -> None:
    """Zephyr's template has no BOS, Mistral's has one: once, where the tokenizer has a BOS."""
    with_bos, without = chat_tokenizer(kind, "mistral_v01"), chat_tokenizer(kind, "zephyr")
    ids = encode_pair("d", *PAIRS[0], with_bos, "chat", WHOLE).ids
    assert ids.count(with_bos.bos_token_id) == (
        0 if with_bos.bos_token is None else 1 + (with_bos.bos_token == with_bos.eos_token)
    )
    assert encode_pair("d", *PAIRS[0], without, "chat", WHOLE).ids[0] != without.bos_token_id


def test_a_chat_s_long_answer_keeps_the_end_of_its_turn_and_a_long_prompt_keeps_bos() -> None:
    tokenizer = chat_tokenizer("mistral", "llama2")
    prompt, answer = PAIRS[0]
    whole = encode_pair("d", prompt, answer, tokenizer, "chat", WHOLE)
    assert whole.n_end == 2 and tokenizer.decode(whole.ids[-2:]).strip() == "</s>"
    for most in range(8, len(whole.ids)):
        short = encode_pair("d", prompt, answer, tokenizer, "chat", most)
        assert len(short.ids) == most and short.ids[-2:] == whole.ids[-2:]
        assert short.ids[0] == tokenizer.bos_token_id
        assert words(short) == words(whole)[: most - 3]


@pytest.mark.parametrize("kind", ["mistral", "llama3"])
def test_a_template_that_trims_or_adds_thoughts_moves_no_label(kind: str) -> None:
    trimmed, thinking = chat_tokenizer(kind, "gemma"), chat_tokenizer(kind, "qwen3")
    plain = encode_pair("d", "Who?", "Paris", trimmed, "chat", WHOLE)
    assert encode_pair("d", "Who?", " Paris \n", trimmed, "chat", WHOLE) == plain
    thought = encode_pair("d", "Who?", "think", thinking, "chat", WHOLE)
    assert thinking.decode(words(thought)).strip() == "think"
    assert "</think>" in thinking.decode(thought.ids[: thought.start])


def test_a_chat_template_that_is_not_there_or_refuses_is_said_in_one_line() -> None:
    none = KINDS["mistral"].build()
    with pytest.raises(UserError, match="needs a tokenizer with a chat template"):
        encode_pair("d", "Who?", "Paris", none, "chat", WHOLE)
    none.chat_template = "{{ raise_exception('no such roles') }}"
    with pytest.raises(UserError, match="must take a question and an answer: .*no such roles"):
        check_chat_template(none)
    check_chat_template(chat_tokenizer("mistral", "zephyr"))


# ---- plain templates


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_whole_text_and_labels_begin_with_the_answer(
    kind: str, template: str
) -> None:
    """One blank between the two, and none where the template or the answer has one; a token that
    holds the end of the prompt and the beginning of the answer is a label.
    """
    tokenizer = tokenizer_of(kind)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for prompt, answer in PAIRS:
        for given in (answer, f" {answer}"):
            sequence = encode_pair("d", prompt, given, tokenizer, template, WHOLE)
            before = template.replace("{prompt}", prompt)
            text = before + ("" if before[-1].isspace() or given[0] == " " else " ") + given
            n_begin = int(KINDS[kind].begins != "")
            assert list(sequence.ids[n_begin:]) == ids_of(text, tokenizer) + end
            at, spans = positions_of(text, len(text) - len(answer), tokenizer)
            # a blank that is a token of its own belongs to whom it stands with
            while at and spans[at - 1][1] > len(before) and not text[slice(*spans[at - 1])].strip():
                at -= 1
            assert sequence.start == max(1, n_begin + at), (kind, template, prompt, given)
            assert sequence.n_end == len(end)


@pytest.mark.parametrize("kind", KINDS)
def test_bos_is_there_exactly_when_the_tokenizer_has_it(kind: str) -> None:
    """By hand, per kind; where its file says anything of BOS, what transformers itself adds."""
    tokenizer, begins = tokenizer_of(kind), KINDS[kind].begins
    first = [tokenizer.convert_tokens_to_ids(begins)] if begins else []
    assert list(begin_ids(tokenizer)) == first
    for prompt in ("", "Name the capital"):
        ids = encode_pair("d", prompt, "Paris or Rome", tokenizer, "{prompt}", WHOLE).ids
        assert list(ids[: len(first)]) == first
        assert list(ids[len(first) :]).count(tokenizer.bos_token_id) == (
            tokenizer.bos_token is not None and tokenizer.bos_token == tokenizer.eos_token
        )
    if kind not in ("silent", "words"):
        added = list(tokenizer("Paris or Rome")["input_ids"])
        bare = ids_of("Paris or Rome", tokenizer)
        assert added[: len(added) - len(bare)][: len(first)] == first
        assert added[len(first) : len(first) + len(bare)] == bare


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_a_prompt_is_all_labels_but_its_first_token(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    sequence = encode_pair("d", "", "Paris or Rome", tokenizer, TEMPLATES[0], WHOLE)
    assert sequence.start == 1
    bare = ids_of("Paris or Rome", tokenizer)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    assert list(sequence.ids)[int(KINDS[kind].begins != "") :] == bare + end


def test_a_token_over_the_border_is_a_label_and_what_stands_before_it_is_the_prompt() -> None:
    """A vocabulary with the token `:"`: the answer's quote is never given away unpredicted."""
    tokenizer = KINDS["Characters"].build()
    sequence = encode_pair("d", "aa", "aab", tokenizer, "{prompt}x", WHOLE)
    assert tokenizer.convert_ids_to_tokens(labels(sequence)) == [" ", "aa", "b", "</s>"]
    # "x" and the answer's first "x" are one token
    whole = encode_pair("d", "a", "\nb", tokenizer, "{prompt}\n", WHOLE)
    assert tokenizer.convert_ids_to_tokens(whole.ids) == ["a", "\n\n", "b", "</s>"]
    assert whole.start == 1


def test_texts_are_joined_with_one_blank_or_what_white_space_they_have() -> None:
    assert [join(*pair) for pair in (("a", "b"), ("a ", "b"), ("a\n", "b"), ("a", " b"))] == [
        "a b",
        "a b",
        "a\nb",
        "a b",
    ]
    assert join("", "b") == "b"


def test_a_text_that_leaves_nothing_to_predict_is_refused() -> None:
    tokenizer = KINDS["wordpiece"].build()
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(UserError, match="must leave a token to predict"):
        encode_pair("d", "", "the", tokenizer, "{prompt}", WHOLE)


def test_what_is_aligned_says_which_characters_a_token_stands_for() -> None:
    tokenizer = tokenizer_of("llama3")
    whole = align("Who?", "Paris, Rome", tokenizer, TEMPLATES[0])
    assert whole.text[whole.answer :] == "Paris, Rome"
    parts = [whole.text[slice(*span)] for span in whole.spans]
    assert "".join(parts) == whole.text and parts[0] == parts[-1] == ""
    assert "".join(parts[whole.start :]) == " Paris, Rome"


# ---- caches


def test_packed_sequences_keep_their_ends_and_their_digest_is_that_of_what_a_model_reads() -> None:
    sequences = [Encoded("a", (1, 2, 3), 1, 0), Encoded("b", (1, 2, 3, 4), 2, 2)]
    assert unpack_tensors(pack_tensors(sequences), ["a", "b"]) == sequences
    other = [dataclasses.replace(s, n_end=1) for s in sequences]
    assert sequences_digest(other) == sequences_digest(sequences)


# ---- the synthetic datasets' own tokenizers


def former_pair(
    prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase, template: str, most: int
) -> tuple[tuple[int, ...], int]:
    """The rule before: prompt and answer encoded apart, BOS and end token always."""
    begin, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    before = ids_of(template.replace("{prompt}", prompt), tokenizer) if prompt else []
    after = ids_of(f" {answer}" if prompt else answer, tokenizer)[: most - 2] + end
    room = most - 1 - len(after)
    before = before[len(before) - room :] if len(before) > room else before
    ids = (*begin, *before, *after)
    return ids, max(1, len(ids) - len(after))


def pairs_of(corpus: Corpus) -> Iterator[tuple[str, str]]:
    documents: list[Document] = [*corpus.forget, *corpus.retain]
    documents += [
        d for part in (*corpus.probes.values(), *corpus.extra_training.values()) for d in part
    ]
    for d in documents:
        yield d.prompt, d.answer
        for answer in (d.paraphrase, *d.wrong):
            if answer:
                yield d.prompt, answer


@pytest.mark.parametrize("bed", ["domain", "people"])
@pytest.mark.parametrize("pieces", [False, True], ids=["words", "byte pairs"])
def test_nothing_changes_for_the_test_beds(
    bed: str, pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every document, option and paraphrase of both datasets, whole and cut."""
    if pieces:
        monkeypatch.setattr("rayunlearn.models.scratch.MOST_WORDS", 0)
    corpus, template = generate_dataset(Data(name=bed)), Data.template
    documents = [*corpus.forget, *corpus.retain, *(d for p in corpus.probes.values() for d in p)]
    tokenizer = build_tokenizer(training_texts(documents, template))
    for prompt, answer in sorted(set(pairs_of(corpus))):
        for most in (256, 12):
            found = encode_pair("d", prompt, answer, tokenizer, template, most)
            assert (found.ids, found.start) == former_pair(
                prompt, answer, tokenizer, template, most
            )
            assert found.n_end == 1


# ---- a real model


STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260k"


@pytest.mark.skipif(
    not STORIES.is_dir(),
    reason="the TinyStories model (shared/data/stories260k) is not on this machine",
)
def test_the_stories_model_knows_its_own_words_by_heart() -> None:
    """Its greedy text as the answer: probability 0.205 (the end token, which a story does not have
    there, is in it) and extraction strength 1; with two blanks before it they were 0.086 and 0.905.
    """
    from rayunlearn.metrics.evaluate import chosen_metrics, encode_probes, evaluate_probes
    from rayunlearn.models.generate import ends_of
    from rayunlearn.models.generate import generate_texts as continued

    model, tokenizer = load_model(str(STORIES))
    prompt = "Once upon a time, there was a little girl named"
    asked = encode_pair("d", prompt, "Lily", tokenizer, "{prompt}", 256)
    opening = asked.ids[: asked.start]
    text = continued(model, [opening], ends=ends_of(model, tokenizer), max_new_tokens=20)[0]
    answer = str(tokenizer.decode(text)).strip()
    assert answer.startswith("Lily. She loved to play outside")
    probes = encode_probes(
        {"forget": [Document(prompt=prompt, answer=answer)]}, tokenizer, "{prompt}", 256
    )
    assert words(probes[0].answer) == text
    chosen = chosen_metrics("probability,exact_memorization,extraction_strength")
    values = [row["value"] for row in evaluate_probes(model, probes, chosen, tokenizer=tokenizer)]
    assert values == [pytest.approx(0.205, abs=5e-4), 1.0, 1.0]


def test_texts_that_are_cut_are_counted_by_role() -> None:
    """As many as encoding them shortens, in a template and in one of the split's own."""
    tokenizer = KINDS["mistral"].build()
    texts = [Document(prompt="Who? " * n, answer="Paris " * n) for n in (1, 9, 19)]
    whole = encode_documents(texts, tokenizer, "Q: {prompt}", WHOLE)
    cut = encode_documents(texts, tokenizer, "Q: {prompt}", 16)
    shortened = sum(len(a.ids) != len(b.ids) for a, b in zip(whole, cut, strict=True))
    assert count_cut(texts, tokenizer, "Q: {prompt}", 16) == shortened > 0
    corpus = Corpus(
        name="c",
        forget=tuple(texts),
        retain=(texts[0],),
        probes={"forget": tuple(texts)},
        extra_training={},
    )
    line = f"longer than data.max_tokens=16 and cut: {shortened} of 3 (forget), "
    assert cut_note(corpus, tokenizer, "Q: {prompt}", 16) == (
        f"{line}{shortened} of 3 (probes forget)",
    )
    assert cut_note(corpus, tokenizer, "Q: {prompt}", WHOLE) == ()
