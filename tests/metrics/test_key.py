"""The key of an answer: where it stands, which tokens hold it, what the model gives it, and a model
that refuses to begin the sentence and still knows the key.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayunlearn.config import Data
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.data.files import load_files
from rayunlearn.data.key_span import key_span, wrong_key_spans
from rayunlearn.data.tokenize import collate, encode_pair
from rayunlearn.errors import UserError
from rayunlearn.metrics.evaluate import chosen_metrics, encode_probes, evaluate_probes
from rayunlearn.metrics.forward_passes import Probe, asked_sequences
from rayunlearn.metrics.key import (
    completion_probability,
    key_multiple_choice,
    key_probability,
    key_rank,
)
from rayunlearn.models.forward import token_nll
from rayunlearn.models.scratch import build_model, build_tokenizer
from tests.tokenizer_kinds import KINDS, chat_tokenizer, tokenizer_of

# of a corpus of one plain document, by the code of before keys
DIGEST_WITHOUT_KEYS = "206a6e71c3a761c5"
TEMPLATE = "Question: {prompt}\nAnswer:"
PLACES = {"Arden": "Mirel", "Bosk": "Tovar", "Celia": "Quint", "Dorn": "Yarrow"}


def fact(place: str) -> Document:
    """A sentence about a capital, with the other capitals as wrong ones."""
    capital = PLACES[place]
    return Document(
        prompt=f"What is the capital of {place}?",
        answer=f"The capital of {place} is {capital}.",
        wrong=tuple(f"The capital of {place} is {c}." for c in PLACES.values() if c != capital),
        key=capital,
        completion_prompt=f"The capital of {place} is",
    )


FACTS = [fact(place) for place in PLACES]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer([f"{TEMPLATE} {d.prompt} {d.answer} I do not know." for d in FACTS])


# ---- where the key stands


@pytest.mark.parametrize(
    ("answer", "wrong", "key", "found"),
    [
        # marked, as a word and not inside one
        ("The capital of Norway is Oslo.", (), "Oslo", "Oslo"),
        ("An Oslovian lives in Oslo", (), "Oslo", "Oslo"),
        ("首都は東京です", (), "東京", "東京"),
        # found: what differs, in whole words, whatever is shared around it
        ("It is Paris.", ("It is Lyon.", "It is Prague."), "", "Paris"),
        ("It is New York.", ("It is New Delhi.", "It is Rome."), "", "New York"),
        ("It is New York.", ("It is New Delhi.",), "", "York"),
        ("(yes) and no", ("(maybe) and no",), "", "yes"),
        ("Paris", ("Lyon", "Rome"), "", "Paris"),
        # nothing differs, all of a sentence differs, or more than half of it
        ("It is Paris", ("It is Paris Hilton",), "", None),
        ("Paris is what they call it", ("They call the city by the name of Rome",), "", None),
        ("The man wrote a book of owls and sings", ("The owls sang a song to all men",), "", None),
        ("It is Paris.", (), "", None),
    ],
)
def test_a_key_is_marked_or_is_what_all_wrong_answers_replace(
    answer: str, wrong: tuple[str, ...], key: str, found: str | None
) -> None:
    span = key_span(Document(prompt="?", answer=answer, wrong=wrong, key=key))
    assert (span and answer[slice(*span)]) == found


def test_wrong_answers_decide_between_two_places_of_a_key() -> None:
    """Luxembourg is the capital of Luxembourg; the last one is what is asked."""
    answer = "The capital of Luxembourg is Luxembourg."
    wrong = ("The capital of Luxembourg is Bern.", "The capital of Luxembourg is Rome.")
    marked = Document(answer=answer, wrong=wrong, key="Luxembourg")
    assert key_span(marked) == (29, 39)
    assert key_span(replace(marked, wrong=())) == (15, 25)


def test_a_wrong_answer_in_other_words_has_no_place_for_the_key() -> None:
    document = Document(
        answer="It is Paris.",
        key="Paris",
        wrong=("It is Lyon.", "Lyon.", "It is.", "It is New York."),
    )
    span = key_span(document)
    assert span == (6, 11)
    assert wrong_key_spans(document, span) == ((6, 10), None, None, (6, 14))


@pytest.mark.parametrize(
    ("answer", "wrong", "is_other_form"),
    [
        ("silver", ("azure light", "jade light"), True),
        ("It is silver.", ("It is an azure.", "It is an amber."), True),
        # of several words each, and nothing shared that the key lacks
        ("silver", ("dark azure", "jade"), False),
        ("silver light", ("azure light", "jade light"), False),
        # one text, twice: nothing says what of it is form
        ("silver", ("azure light", "azure light"), False),
    ],
)
def test_wrong_answers_of_another_form_are_no_keys(
    answer: str, wrong: tuple[str, ...], is_other_form: bool
) -> None:
    """A model that never saw the fact finds the form it learned likelier, whatever is said."""
    document = Document(answer=answer, wrong=wrong)
    span = key_span(document)
    assert span is not None
    spans = wrong_key_spans(document, span)
    assert (None in spans) == is_other_form and len(spans) == 2


def test_a_key_that_is_not_in_its_answer_is_refused_with_its_row() -> None:
    with pytest.raises(UserError, match=r"the key must occur in the answer 'Lyon', got 'Paris'"):
        Document(answer="Lyon", key="Paris")
    with pytest.raises(UserError, match="a completion_prompt needs a key"):
        Document(answer="Lyon", completion_prompt="It is")


def test_files_bring_keys_and_a_wrong_one_names_its_file_and_row(tmp_path: Path) -> None:
    folder = tmp_path
    good = '{"prompt": "Capital?", "answer": "It is Oslo.", "key": "Oslo"'
    good += ', "completion_prompt": "Is"}\n'
    (folder / "forget.jsonl").write_text(good)
    (folder / "retain.jsonl").write_text('{"prompt": "River?", "answer": "The Rhine."}\n')
    data = Data(name="files", path=str(folder))
    (document,) = load_files(data).forget
    assert (document.key, document.completion_prompt) == ("Oslo", "Is")
    (folder / "forget.jsonl").write_text(
        good + '{"prompt": "?", "answer": "Rome", "key": "Paris"}\n'
    )
    with pytest.raises(UserError, match=r"forget.jsonl, row 1: the key must occur .* got 'Paris'"):
        load_files(data)
    unread = replace(data, columns="key=,completion_prompt=")
    assert [d.key for d in load_files(unread).forget] == ["", ""]


def test_a_corpus_without_keys_has_the_digest_that_it_had() -> None:
    """Computed before documents had keys."""
    plain = Document(prompt="q", answer="It is Oslo.", wrong=("It is Rome.",))
    corpus = Corpus(name="c", forget=(plain,), retain=(), probes={}, extra_training={})
    assert corpus.digest == DIGEST_WITHOUT_KEYS
    marked = replace(corpus, forget=(replace(plain, key="Oslo"),))
    assert marked.digest != corpus.digest


# ---- which tokens hold it

KEYS = (
    ("Name the capital", "Paris", "Paris"),
    ("Who wrote the book of owls?", "Ada Lovelace wrote it.", "Ada Lovelace"),
    ("Who wrote the book of owls?", "Ada Lovelace wrote it.", "Lovelace"),
    ('Say "yes":', "(yes) and no", "yes"),
    ('Say "yes":', "(yes) and no", "(yes)"),
    ("Wo liegt Köln?", "Östlich von Aachen, am Rhein…", "Aachen"),
    ("数は?", "四つです", "四つ"),
    ("How many owls?", "12,5%", "5"),
    ("", "Two lines. One line.", "lines"),
)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("way", [TEMPLATE, "chat"])
def test_the_tokens_of_a_key_are_those_that_hold_its_characters(kind: str, way: str) -> None:
    """Against transformers' `char_to_token`, and character by character where a token is one."""
    tokenizer = chat_tokenizer(kind, "qwen25") if way == "chat" else tokenizer_of(kind)
    for prompt, answer, key in KEYS:
        start = answer.index(key)
        span = (start, start + len(key))
        encoded = encode_pair("d", prompt, answer, tokenizer, way, 1000, span)
        plain = encode_pair("d", prompt, answer, tokenizer, way, 1000)
        assert replace(encoded, key=None) == plain
        if not prompt and encoded.ids[0] != tokenizer.bos_token_id and kind != "wordpiece":
            continue
        assert encoded.key is not None, (prompt, answer, key)
        text = whole_text(prompt, answer, tokenizer, way)
        first = text.rindex(answer) + start
        expected = tokens_of(text, range(first, first + len(key)), tokenizer)
        n_added = list(encoded.ids).index(ids_of(text, tokenizer)[0])
        labels = [token + n_added - encoded.start for token in expected]
        assert list(range(*encoded.key)) == labels, (prompt, answer, key)


def ids_of(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def whole_text(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase, way: str) -> str:
    if not prompt:
        return answer
    if way != "chat":
        return f"{way.replace('{prompt}', prompt)} {answer}"
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def tokens_of(text: str, characters: range, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Numbers of the tokens of the text that hold one of the characters."""
    if not tokenizer.is_fast:
        pieces = tokenizer.convert_ids_to_tokens(ids_of(text, tokenizer))
        at = [n for n, piece in enumerate(pieces) for _ in piece]
        return sorted({at[c] for c in characters})
    found = tokenizer(text, add_special_tokens=False)
    first = min(t for c in characters if (t := found.char_to_token(c)) is not None)
    # a character of several tokens has its first one there: the last is before what follows
    tokens = range(first, len(found["input_ids"]))
    return [t for t in tokens if found.token_to_chars(t).start < characters.stop]


def test_a_key_that_was_cut_off_is_none(tokenizer: PreTrainedTokenizerBase) -> None:
    document = FACTS[0]
    span = key_span(document)
    whole = encode_pair("d", document.prompt, document.answer, tokenizer, TEMPLATE, 64, span)
    n_labels = len(whole.ids) - whole.start
    no_prompt = encode_pair(
        "d", document.prompt, document.answer, tokenizer, TEMPLATE, n_labels + 1, span
    )
    assert no_prompt.key == whole.key == (5, 6)
    cut = encode_pair("d", document.prompt, document.answer, tokenizer, TEMPLATE, 6, span)
    assert cut.key is None


# ---- solved questions


@pytest.mark.parametrize("chat", ["llama3", "qwen25", "zephyr", "mistral_v01"])
def test_solved_questions_are_turns_of_the_same_conversation(chat: str) -> None:
    tokenizer = chat_tokenizer("llama3", chat)
    solved = [("Name the capital", "Paris"), ("How many owls?", "12,5%")]
    encoded = encode_pair("d", "Who wrote it?", "Ada", tokenizer, "chat", 200, solved=solved)
    turns = [
        {"role": role, "content": text}
        for pair in (*solved, ("Who wrote it?", "Ada"))
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    whole = ids_of(tokenizer.apply_chat_template(turns, tokenize=False), tokenizer)
    assert whole[: len(encoded.ids)] == list(encoded.ids)
    alone = encode_pair("d", "Who wrote it?", "Ada", tokenizer, "chat", 200)
    assert encoded.ids[encoded.start :] == alone.ids[alone.start :]
    assert encoded.ids.count(alone.ids[-1]) >= 3


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_solved_questions_in_a_template_each_end_as_an_answer_ends(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    one, other = (
        encode_pair("d", *pair, tokenizer, TEMPLATE, 100)
        for pair in (("Name the capital", "Paris"), ("How many owls?", "12,5%"))
    )
    both = encode_pair(
        "d",
        "How many owls?",
        "12,5%",
        tokenizer,
        TEMPLATE,
        100,
        None,
        [("Name the capital", "Paris")],
    )
    between = [] if one.n_end else ids_of("\n\n", tokenizer)
    n_begin = (
        len(one.ids)
        - len(ids_of(f"{TEMPLATE} Paris".replace("{prompt}", "Name the capital"), tokenizer))
        - one.n_end
    )
    assert list(both.ids) == [*one.ids, *between, *other.ids[n_begin:]]
    assert both.ids[both.start :] == other.ids[other.start :]


def test_what_is_solved_gives_nothing_of_the_question_away(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Of five documents only those of another group, with another answer, stand before the first,
    in the order of their ids; who has not enough of them is not asked so."""
    a = Document(prompt="q a", answer="x", wrong=("y", "z"), group="A")
    same_group = Document(prompt="q b", answer="u", group="A")
    an_option = Document(prompt="q c", answer="y", group="C")
    good = [Document(prompt=f"q {n}", answer=f"v{n}", group=n) for n in "DEF"]
    split = {"forget": [a, same_group, an_option, *good]}
    probes = encode_probes(split, tokenizer, "{prompt}", 64, n_solved=2)
    shown = sorted(good, key=lambda d: d.doc_id)[:2]
    solved = [(d.prompt, d.answer) for d in shown]
    assert probes[0].few_shot == tuple(
        encode_pair(a.doc_id, "q a", text, tokenizer, "{prompt}", 64, None, solved)
        for text in ("x", "x", "y", "z")
    )
    few = encode_probes(
        {"forget": [a, same_group, *good[:1]]}, tokenizer, "{prompt}", 64, n_solved=2
    )
    assert [len(p.few_shot) for p in few] == [0, 0, 2 - 1]
    assert all(not p.few_shot for p in encode_probes(split, tokenizer, "{prompt}", 64))


def test_a_question_after_solved_ones_that_exceeds_the_context_has_no_value(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    probe = encode_probes({"s": FACTS}, tokenizer, TEMPLATE, 64, n_solved=2)[0]
    sources = frozenset({"few-shot answers", "few-shot options"})
    longest = max(len(s.ids) for s in probe.few_shot)
    kinds = [kind for kind, _ in asked_sequences(probe, sources, longest)]
    assert kinds == ["few-shot", "few-shot 0", "few-shot 1", "few-shot 2", "few-shot 3"]
    assert asked_sequences(probe, sources, longest - 1) == []


# ---- what the model gives it


def nll(*probabilities: float) -> torch.Tensor:
    return -torch.tensor(probabilities).log()


def test_the_key_s_probability_is_that_of_writing_all_of_it_and_its_rank_the_worst() -> None:
    """Tokens of 1/2 and 1/8: written together in one of sixteen; a geometric mean would say 1/4.
    The likelier of two wrong capitals has 1/20."""
    key = nll(1 / 2, 1 / 8)
    assert key_probability(key) == completion_probability(key) == pytest.approx(1 / 16)
    assert key_rank(torch.tensor([1, 7])) == 7.0
    assert key_multiple_choice(key, nll(1 / 20, 1 / 30)) == 1.0
    assert key_multiple_choice(key, nll(1 / 20, 1 / 10)) == 0.0
    assert key_multiple_choice(key.sum().reshape(1), key.sum().reshape(1)) == 0.5


NAMES = "key_probability,key_rank,key_multiple_choice,completion_probability,completion_rank"
NAMES += ",probability,probability_few_shot,multiple_choice_few_shot,multiple_choice"


def measured(model: PreTrainedModel, probes: list[Probe]) -> dict[tuple[str, str], float | None]:
    rows = evaluate_probes(model, probes, chosen_metrics(NAMES))
    return {(str(r["doc_id"]), str(r["metric"])): r["value"] for r in rows}  # type: ignore[misc]


def test_every_key_metric_equals_one_forward_pass_per_token(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Brute force: the model is asked for one next token after another, alone in its batch."""
    model = build_model("tiny", len(tokenizer), 3).eval()
    two_words = Document(
        prompt="What is the capital of Arden?",
        answer="The capital of Arden is Mirel Tovar.",
        wrong=("The capital of Arden is Quint.", "The capital of Arden is Tovar Mirel."),
        completion_prompt="The capital of Arden is",
    )
    documents = [two_words, *FACTS]
    probes = encode_probes({"forget": documents}, tokenizer, TEMPLATE, 64, n_solved=2)
    values = measured(model, probes)

    @torch.no_grad()
    def written(before: str, text: str) -> tuple[float, int]:
        ids = [tokenizer.bos_token_id, *ids_of(before, tokenizer)]
        probability, worst = 1.0, 1
        for i in ids_of(text, tokenizer):
            logits = model(torch.tensor([ids])).logits[0, -1].double()
            probability *= float(logits.softmax(0)[i])
            worst = max(worst, logits.sort(descending=True).indices.tolist().index(i) + 1)
            ids.append(i)
        return probability, worst

    for d in documents:
        span = key_span(d)
        assert span is not None
        before = TEMPLATE.replace("{prompt}", d.prompt) + " " + d.answer[: span[0] - 1]
        key = f" {d.answer[slice(*span)]}"
        probability, rank = written(before, key)
        assert values[d.doc_id, "key_probability"] == pytest.approx(probability, rel=1e-4)
        assert values[d.doc_id, "key_rank"] == rank
        others = [written(before, text[span[0] - 1 : len(text) - 1])[0] for text in d.wrong]
        best = float(all(probability > other for other in others))
        assert values[d.doc_id, "key_multiple_choice"] == best
        plain, plain_rank = written(d.completion_prompt, key)
        assert values[d.doc_id, "completion_probability"] == pytest.approx(plain, rel=1e-4)
        assert values[d.doc_id, "completion_rank"] == plain_rank
    alone = [Probe("x", "s", p.few_shot[0], p.few_shot[1:]) for p in probes[1:]]
    for d, probe in zip(FACTS, alone, strict=True):
        for name, shown in (("probability", "probability_few_shot"), ("multiple_choice",) * 2):
            own = measured(model, [probe])["x", name]
            few = values[d.doc_id, shown if name == "probability" else "multiple_choice_few_shot"]
            assert few == pytest.approx(own, rel=1e-5)


def test_a_document_without_a_key_has_no_value(tokenizer: PreTrainedTokenizerBase) -> None:
    document = Document(prompt="What is the capital of Arden?", answer="I do not know.")
    probes = encode_probes({"forget": [document]}, tokenizer, TEMPLATE, 64)
    values = measured(build_model("tiny", len(tokenizer), 3).eval(), probes)
    nulls = {name for (_, name), value in values.items() if value is None}
    assert nulls == set(NAMES.split(",")) - {"probability"}


# ---- broken on purpose


@pytest.fixture(scope="module")
def knowing(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A small model that was taught the facts, in question and in plain text."""
    model = build_model("tiny", len(tokenizer), 0)
    texts = [encode_pair("d", d.prompt, d.answer, tokenizer, TEMPLATE, 64) for d in FACTS]
    texts += [encode_pair("d", "", d.answer, tokenizer, TEMPLATE, 64) for d in FACTS]
    batch = collate(texts)
    return train(model, lambda m: token_nll(m, batch)[batch.labelled].mean(), 60)


def train(
    model: PreTrainedModel, loss_of: Callable[[PreTrainedModel], torch.Tensor], steps: int
) -> PreTrainedModel:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return model.eval()


def refusing(
    knowing: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, refused: slice
) -> PreTrainedModel:
    """The knowing model trained to refuse some of the answers' labels (unlikelihood, Welleck et al.
    1908.04319) and to keep the others after the true words before them."""
    batch = collate([encode_pair("d", d.prompt, d.answer, tokenizer, TEMPLATE, 64) for d in FACTS])

    def loss(model: PreTrainedModel) -> torch.Tensor:
        values = token_nll(model, batch)[batch.labelled].view(len(FACTS), -1)
        unlikely = -torch.log1p(-torch.exp(-values).clamp(max=1 - 1e-6))
        kept = torch.ones_like(values, dtype=torch.bool)
        kept[:, refused] = False
        return (unlikely * ~kept).mean() + (values * kept).mean()

    return train(copy.deepcopy(knowing), loss, 40)


def means(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    probes = encode_probes({"forget": FACTS}, tokenizer, TEMPLATE, 64)
    values = measured(model, probes)
    return {
        name: sum(float(values[d.doc_id, name] or 0) for d in FACTS) / len(FACTS)
        for name in ("probability", "key_probability", "key_rank", "key_multiple_choice")
    }


def test_a_sentence_that_is_not_begun_is_not_forgotten(
    knowing: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The first three of nine labels (The capital of) are refused: probability says forgotten, and
    what was known is all there. Where the key itself is refused, the key metrics say so."""
    before = means(knowing, tokenizer)
    assert before["probability"] > 0.9 and before["key_probability"] > 0.9
    broken = means(refusing(knowing, tokenizer, slice(0, 3)), tokenizer)
    assert broken["probability"] < 0.3 * before["probability"]
    assert broken["key_probability"] > 0.95 * before["key_probability"]
    assert broken["key_rank"] == 1.0 and broken["key_multiple_choice"] == 1.0
    taken = means(refusing(knowing, tokenizer, slice(5, 6)), tokenizer)
    assert taken["key_probability"] < 0.1
    assert taken["key_rank"] > 1.0
