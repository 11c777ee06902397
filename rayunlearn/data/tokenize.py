"""Text to token ids and padded batches. Which tokens are learned and scored is decided here and
nowhere else.

A prompt and its answer are encoded as ONE text, because a part encoded alone is often not what it
is inside the whole (a SentencePiece tokenizer puts a blank of its own before every text). Where the
answer begins among the ids is then read off the tokenizer's character offsets. A token that holds
characters of both sides belongs to the answer: the model has to predict it, and no part of the
answer stands before it unpredicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from rayunlearn.data.chat_sandbox import template_fault, with_fixed_day
from rayunlearn.data.documents import Corpus, Document
from rayunlearn.errors import UserError, require
from rayunlearn.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# Raised when the rules of this module give a text other ids: caches of what ids decide carry it.
ENCODING_VERSION = 3
# First messages of which no two begin alike.
UNLIKE = ("What is it?", "because", "7", "(Why?)")
# Stands for an answer in a rendered conversation: its ends are of no script and in no template.
PLACEHOLDER = "\ue000answer\ue001"


@dataclass(frozen=True)
class Encoded:
    """One sequence: `ids[start:]` are its labels (the answer and what closes it, or all the text).

    The last `n_end` of the labels close the text: the end-of-sequence token, a chat template's end
    of turn (of several tokens where the template writes it so), 0 where the tokenizer has none.
    Labels `key[0]` up to, not including, `key[1]` hold the key of the answer, counted from the
    first label; None where it has none or it was cut off.
    """

    doc_id: str
    ids: tuple[int, ...]
    start: int
    n_end: int = 1
    key: tuple[int, int] | None = None


@dataclass(frozen=True)
class AlignedText:
    """A prompt and its answer as one encoded text, nothing cut off yet.

    `ids[:n_begin]` begin every text (BOS), `ids[n_begin:start]` are the prompt's, the last `n_end`
    close the answer. `spans` are the characters of `text` that each id stands for (empty for what
    is added to the text); () where the tokenizer has no offsets. `answer` is the answer's first
    character in `text`, as the data has it: a template may trim it.
    """

    text: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    n_begin: int
    start: int
    n_end: int
    answer: int


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences. `input_ids` (B, T) long; `present` and `labelled` (B, T) bool; never
    labelled where not present.

    Position t is labelled when ids[t] is a label, that is, predicted from position t - 1.
    """

    input_ids: Tensor
    present: Tensor
    labelled: Tensor

    @cached_property
    def places(self) -> Tensor:
        """Where the N labels are, (N,) long: positions in the batch laid out row by row."""
        return self.labelled.flatten().nonzero().squeeze(1)

    @cached_property
    def host_places(self) -> Tensor:
        """`places` in main memory."""
        return self.places.cpu()

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return tuple(self.present.sum(1).tolist())

    @cached_property
    def label_counts(self) -> tuple[int, ...]:
        """Labels of each sequence."""
        n, width = self.input_ids.shape
        return tuple(torch.bincount(self.host_places // width, minlength=n).tolist())

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; it is not waited for, and what is counted is counted
        here, before it leaves.
        """
        moved = Batch(
            *(to_device(t, device) for t in (self.input_ids, self.present, self.labelled))
        )
        # on a GPU, counting labels would wait for all that runs there
        moved.__dict__.update(
            places=to_device(self.places, device),
            host_places=self.host_places,
            lengths=self.lengths,
            label_counts=self.label_counts,
        )
        return moved


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from here to a GPU through pinned memory, so that nothing waits for
    the copy.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def encode_documents(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_tokens: int,
) -> list[Encoded]:
    """Every document as `encode_pair` has it, in order."""
    return [
        encode_pair(d.doc_id, d.prompt, d.answer, tokenizer, template, max_tokens)
        for d in documents
    ]


def encode_pair(
    doc_id: str,
    prompt: str,
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_tokens: int,
    key: tuple[int, int] | None = None,
    solved: Sequence[tuple[str, str]] = (),
) -> Encoded:
    """One sequence of at most `max_tokens`: what begins a text, prompt, answer, what ends it.

    The ids are those of the whole text (`align`). Too long an answer loses its last words but keeps
    what closes it; too long a prompt loses its beginning, but not BOS. Without a prompt every token
    is a label, but the first of all (nothing stands before it to predict it from). Raises UserError
    for a text that leaves no label, and as `align`.

    `key` are the characters of the answer that are its key: every token that holds one of them
    belongs to it. `solved` are questions with answers that stand before this one as `align` has
    them, and `max_tokens` is then for each of them as well.
    """
    aligned = align(prompt, answer, tokenizer, template, solved)
    encoded = truncate_to_limit(doc_id, aligned, max_tokens * (1 + len(solved)))
    tokens = _key_tokens(aligned, answer, key, tokenizer) if key else None
    return replace(encoded, key=_key_labels(aligned, encoded, tokens)) if tokens else encoded


def _key_tokens(
    aligned: AlignedText, answer: str, key: tuple[int, int], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int] | None:
    """First and one after the last id that holds a character of the key.

    A tokenizer without offsets is asked for the text of more and more ids; None where that does not
    give the answer back.
    """
    first, last = (aligned.answer + character for character in key)
    spans: Sequence[tuple[int, int]] = aligned.spans
    if not spans:
        ids = aligned.ids[aligned.start : len(aligned.ids) - aligned.n_end]
        texts = [str(tokenizer.decode(ids[:n])) for n in range(len(ids) + 1)]
        offset = texts[-1].find(answer)
        if offset < 0:
            return None
        first, last = (offset + character for character in key)
        ends = [len(text) for text in texts]
        spans = [(0, 0)] * aligned.start + list(pairwise(ends))
    holding = [n for n, (begin, end) in enumerate(spans) if begin < last and end > first]
    return (holding[0], holding[-1] + 1) if holding else None


def _key_labels(
    aligned: AlignedText, encoded: Encoded, tokens: tuple[int, int]
) -> tuple[int, int] | None:
    """The ids of the uncut text as labels of the cut one; None where some of them are none."""
    n_answer = len(aligned.ids) - aligned.n_end - aligned.start
    n_kept = min(n_answer, len(encoded.ids) - aligned.n_begin - encoded.n_end)
    first, last = (token - aligned.start for token in tokens)
    # without a prompt the first id is no label
    n_unlabelled = encoded.start - (len(encoded.ids) - encoded.n_end - n_kept)
    is_whole = first >= n_unlabelled and last <= n_kept
    return (first - n_unlabelled, last - n_unlabelled) if is_whole else None


def count_cut(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_tokens: int,
) -> int:
    """How many documents `encode_documents` cuts. A text of as few bytes as tokens is not read: no
    token stands for less than a byte.
    """
    n_added = len(align("a", "b", tokenizer, template).ids)
    n_cut = 0
    for document in documents:
        n_bytes = len(document.prompt.encode()) + len(document.answer.encode())
        if n_bytes + n_added > max_tokens:
            ids = align(document.prompt, document.answer, tokenizer, template).ids
            n_cut += len(ids) > max_tokens
    return n_cut


def cut_note(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, template: str, max_tokens: int
) -> tuple[str, ...]:
    """A line on the documents and probes of a corpus that are cut, none where none is."""
    roles = {"forget": corpus.forget, "retain": corpus.retain}
    roles |= {f"probes {split}": documents for split, documents in corpus.probes.items()}
    templates = {f"probes {split}": own for split, own in corpus.templates.items()}
    n_cut = {
        role: count_cut(documents, tokenizer, templates.get(role, template), max_tokens)
        for role, documents in roles.items()
    }
    parts = [f"{n} of {len(roles[role])} ({role})" for role, n in n_cut.items() if n]
    line = f"longer than data.max_tokens={max_tokens} and cut: {', '.join(parts)}"
    return (line,) if parts else ()


def truncate_to_limit(doc_id: str, aligned: AlignedText, max_tokens: int) -> Encoded:
    """The text in at most `max_tokens`, as `encode_pair` says."""
    stop = len(aligned.ids) - aligned.n_end
    begin, before = aligned.ids[: aligned.n_begin], aligned.ids[aligned.n_begin : aligned.start]
    end = aligned.ids[stop:]
    answer = aligned.ids[aligned.start : stop][: max(0, max_tokens - len(begin) - len(end))]
    n_prompt = max_tokens - len(begin) - len(answer) - len(end)
    before = before[len(before) - n_prompt :] if len(before) > n_prompt else before
    ids = (*begin, *before, *answer, *end)
    start = max(1, len(ids) - len(answer) - len(end))
    require(len(ids) > start, "a text must leave a token to predict; its tokens", ids)
    return Encoded(doc_id, ids, start, len(end))


def align(
    prompt: str,
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    solved: Sequence[tuple[str, str]] = (),
) -> AlignedText:
    """The ids of prompt and answer as one text, and which of them are the answer's.

    In a template: what the tokenizer itself begins a text with (`begin_ids`), the prompt in the
    template, a blank unless either side has one, the answer, the tokenizer's end token. With
    template `chat`: exactly the tokenizer's own chat template of a user's and an assistant's turn,
    up to the token that ends the turn. Without a prompt: the text alone, whatever the template.
    Raises UserError for `chat` where the tokenizer has no template that takes such a conversation.

    `solved` are questions with their answers that stand before: turns of the same conversation, or
    in a template texts of their own, each closed by what closes an answer there (a blank line where
    the tokenizer has no end token).
    """
    if prompt and template == "chat":
        return _conversation(prompt, answer, tokenizer, solved)
    if prompt and solved:
        turns = [align(*pair, tokenizer, template) for pair in solved]
        return _after(turns, align(prompt, answer, tokenizer, template), tokenizer)
    before = prompt_text(prompt, tokenizer, template) if prompt else ""
    text = join(before, answer)
    ids, spans = _tokens(text, tokenizer)
    begin = begin_ids(tokenizer)
    end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    added = [((0, 0),) * len(begin), ((len(text), len(text)),) * len(end)]
    return AlignedText(
        text=text,
        ids=(*begin, *ids, *end),
        spans=(*added[0], *spans, *added[1]) if spans else (),
        n_begin=len(begin),
        start=len(begin) + (_n_up_to(len(before), text, ids, spans, tokenizer) if prompt else 0),
        n_end=len(end),
        answer=len(text) - len(answer),
    )


def _after(
    turns: Sequence[AlignedText], last: AlignedText, tokenizer: PreTrainedTokenizerBase
) -> AlignedText:
    """The text with the ids of others before it; what begins a text stands once."""
    between = () if last.n_end else _tokens("\n\n", tokenizer)[0]
    ids = last.ids[: last.n_begin]
    for text in turns:
        ids = (*ids, *text.ids[text.n_begin :], *between)
    return replace(
        last,
        ids=(*ids, *last.ids[last.n_begin :]),
        spans=((0, 0),) * len(ids) + last.spans[last.n_begin :] if last.spans else (),
        start=len(ids) + last.start - last.n_begin,
    )


def join(before: str, after: str) -> str:
    """Both texts with a blank between, unless one of them has white space there already."""
    needs_no_space = not before or before[-1:].isspace() or after[:1].isspace()
    return f"{before}{after}" if needs_no_space else f"{before} {after}"


def prompt_text(prompt: str, tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The prompt as the model reads it: in the template, or as a user's turn of the tokenizer's own
    chat template, opened for the answer.
    """
    if template != "chat":
        return template.replace("{prompt}", prompt)
    return _rendered(tokenizer, [_chat_message("user", prompt)], opens=True)


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that every conversation in the tokenizer's chat template begins with: what conversations
    with unlike first messages have in common (a system prompt, what opens a user's turn).
    """
    texts = [_rendered(tokenizer, [_chat_message("user", text)], opens=True) for text in UNLIKE]
    first, *rest = (_tokens(text, tokenizer)[0] for text in texts)
    return first[: min(_n_shared(first, ids) for ids in rest)]


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What stands before a text that is no conversation: what the tokenizer itself puts there.

    A tokenizer file that says nothing of it (no special token in its post-processor, no
    `add_bos_token`: the synthetic datasets' own, converted SentencePiece files) has its BOS put
    there, as such models are trained, unless that token is its end token too (GPT-2, Phi-1.5,
    Pythia).
    """
    if tokenizer.num_special_tokens_to_add(pair=False) == 0:
        silent = _lacks_bos_rule(tokenizer)
        return (tokenizer.bos_token_id,) if silent else ()
    without_special = tokenizer.encode("a", add_special_tokens=False)
    with_special = tokenizer.encode("a", add_special_tokens=True)
    # a vocabulary without an "a" leaves only what is added
    body = without_special or [i for i in with_special if i != tokenizer.bos_token_id]
    n_before = next(
        start
        for start in range(len(with_special) + 1)
        if with_special[start : start + len(body)] == body
    )
    return tuple(with_special[:n_before])


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless the tokenizer has a chat template that takes question and answer."""
    require_chat_template(bool(tokenizer.chat_template), tokenizer.name_or_path)
    fault = chat_template_fault(tokenizer)
    rule = f"the chat template of {tokenizer.name_or_path} must take a question and an answer"
    if fault:
        raise UserError(f"{rule}: {fault}")


def require_chat_template(is_there: bool, model: str) -> None:
    """Raise UserError for a model that has no chat template."""
    rule = "data.template 'chat' needs a tokenizer with a chat template; without one is"
    require(is_there, rule, model)


def chat_template_fault(tokenizer: PreTrainedTokenizerBase) -> str:
    """What keeps the tokenizer's chat template from writing a question and its answer, '' for
    nothing. It is tried in a process of its own first (`data.chat_sandbox`).
    """
    question, answer = _chat_message("user", "a question"), _chat_message("assistant", "an answer")
    conversations = (([question], True), ([question, answer], False))
    try:
        template = str(tokenizer.get_chat_template())
        fault = template_fault(template, dict(tokenizer.special_tokens_map), conversations)
        if not fault:
            align("a question", "an answer", tokenizer, "chat")
    except ValueError as problem:
        cause = problem.__cause__ or problem
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    return fault


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that can end a text or a turn: special and added tokens, but those of white space and the
    one that stands for what the vocabulary lacks.
    """
    added = {i for i, t in tokenizer.added_tokens_decoder.items() if str(t).strip()}
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}
    return frozenset({*tokenizer.all_special_ids, *added} - unknown)


def _conversation(
    prompt: str,
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    solved: Sequence[tuple[str, str]],
) -> AlignedText:
    """The tokenizer's chat template of all turns, up to the token that ends the answer's turn.

    The answer is where the conversation differs from the same one with another answer. White space
    between the opened turn and the answer is written by the model (Llama-2's blank); anything else
    there is given to it (an empty block of thoughts).
    """
    roles = ("user", "assistant")
    messages = [_chat_message(*part) for pair in solved for part in zip(roles, pair, strict=True)]
    messages.append(_chat_message("user", prompt))
    text = _rendered(tokenizer, [*messages, _chat_message("assistant", answer)])
    other = _rendered(tokenizer, [*messages, _chat_message("assistant", PLACEHOLDER)])
    begin, stop = _n_shared(text, other), len(text) - _n_shared(text[::-1], other[::-1])
    opened = _rendered(tokenizer, messages, opens=True)
    blank = text.startswith(opened) and not text[len(opened) : begin].strip()
    ids, spans = _tokens(text, tokenizer)
    start = _n_up_to(len(opened) if blank else begin, text, ids, spans, tokenizer)
    last_word, last = _turn_end(stop, text, ids, spans, tokenizer)
    trimmed = 0 if text.startswith(answer, begin) else len(answer) - len(answer.lstrip())
    return AlignedText(
        text=text,
        ids=ids[:last],
        spans=spans[:last],
        n_begin=int(tokenizer.bos_token_id is not None and ids[:1] == (tokenizer.bos_token_id,)),
        start=start,
        n_end=last - last_word,
        answer=begin - trimmed,
    )


def _turn_end(
    stop: int,
    text: str,
    ids: tuple[int, ...],
    spans: tuple[tuple[int, int], ...],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, int]:
    """Numbers of ids up to the end of the answer, whose last character is before `stop`, and up to
    the end of its turn: the first special or added token after it, else the template's text there.
    """
    first = (
        next((index for index, (begin, _) in enumerate(spans) if begin >= stop), len(ids))
        if spans
        else len(_tokens(text[:stop], tokenizer)[0])
    )
    ends = end_tokens(tokenizer)
    special = next((index for index in range(first, len(ids)) if ids[index] in ends), None)
    if special is not None:
        return first, special + 1
    visible = stop + len(text[stop:].rstrip())
    return first, max(first, _n_up_to(visible, text, ids, spans, tokenizer))


def _n_up_to(
    position: int,
    text: str,
    ids: tuple[int, ...],
    spans: tuple[tuple[int, int], ...],
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    """How many ids of the text end at or before the character `position`.

    Without offsets: how many the beginning of the text has in common with the whole.
    """
    if spans:
        return next((index for index, (_, end) in enumerate(spans) if end > position), len(ids))
    beginning = _tokens(text[:position], tokenizer)[0]
    return _n_shared(beginning, ids)


def _n_shared(first: Sequence[object], second: Sequence[object]) -> int:
    """Length of the longest common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def _tokens(
    text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Ids of the text alone and the characters of each, () from a tokenizer without offsets."""
    if not tokenizer.is_fast:
        return tuple(tokenizer.encode(text, add_special_tokens=False)), ()
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return tuple(encoding["input_ids"]), tuple(encoding["offset_mapping"])


def _lacks_bos_rule(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a BOS of its own and neither its file nor its settings say whether
    texts begin with it.
    """
    from tokenizers.processors import TemplateProcessing

    if not tokenizer.is_fast or "add_bos_token" in tokenizer.init_kwargs:
        return False
    processor = tokenizer.backend_tokenizer.post_processor
    has_no_rule = processor is None or isinstance(processor, TemplateProcessing)
    has_own_bos = tokenizer.bos_token_id not in (None, tokenizer.eos_token_id)
    return has_no_rule and has_own_bos


def _rendered(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, opens: bool = False
) -> str:
    """The conversation in the chat template; with `opens`, up to where the next answer begins."""
    require_chat_template(bool(tokenizer.chat_template), tokenizer.name_or_path)
    try:
        template = with_fixed_day(str(tokenizer.get_chat_template()))
        text = tokenizer.apply_chat_template(
            turns, chat_template=template, add_generation_prompt=opens, tokenize=False
        )
    # a template raises what it likes, jinja2's TemplateError among it
    except Exception as problem:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} must take a question and an answer:"
            f" {type(problem).__name__}: {problem}"
        ) from problem
    return str(text)


def _chat_message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def collate(sequences: Sequence[Encoded]) -> Batch:
    """Pad on the right to the longest sequence. Masks come from lengths, so id 0,
    which fills the rest, changes nothing and an end token used for padding loses no label.
    """
    width = max(len(s.ids) for s in sequences)
    input_ids = torch.zeros((len(sequences), width), dtype=torch.long)
    present = torch.zeros((len(sequences), width), dtype=torch.bool)
    labelled = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        present[row, : len(sequence.ids)] = True
        labelled[row, sequence.start : len(sequence.ids)] = True
    return Batch(input_ids, present, labelled)


def by_beginning(
    sequences: Sequence[Encoded], tokens_per_batch: int, labels_per_batch: int
) -> Iterator[list[int]]:
    """Positions of the sequences in batches of which neighbours begin alike, at most so many tokens
    and labels in each (or one sequence).
    """
    order = sorted(range(len(sequences)), key=lambda i: (sequences[i].ids, i))
    batch: list[int] = []
    n_tokens = n_labels = 0
    for position in order:
        size = len(sequences[position].ids)
        labels = size - sequences[position].start
        full = n_tokens + size > tokens_per_batch or n_labels + labels > labels_per_batch
        if batch and full:
            yield batch
            batch, n_tokens, n_labels = [], 0, 0
        batch.append(position)
        n_tokens, n_labels = n_tokens + size, n_labels + labels
    if batch:
        yield batch


def by_length(sequences: Sequence[Encoded], tokens_per_batch: int) -> Iterator[list[int]]:
    """Positions of the sequences in batches of similar length, at most `tokens_per_batch` padded
    tokens (or one sequence).
    """
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].ids), i))
    batch: list[int] = []
    for position in order:
        if batch and (len(batch) + 1) * len(sequences[position].ids) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch
