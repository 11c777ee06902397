"""Text to token ids and padded batches. Which tokens are learned and scored is decided here and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rayunlearn.data.documents import Document
from rayunlearn.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """One sequence: `ids[start:]` are its labels (the answer and its end-of-sequence token, or the
    whole text).
    """

    doc_id: str
    ids: tuple[int, ...]
    start: int


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

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; it is not waited for, and `places` are found here,
        before it leaves.
        """
        moved = Batch(
            *(to_device(t, device) for t in (self.input_ids, self.present, self.labelled))
        )
        # on a GPU, counting labels would wait for all that runs there
        moved.__dict__["places"] = to_device(self.places, device)
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
    """Encode prompt and answer apart and join the ids, so that the border never moves with the
    tokenizer's merges.
    """
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
) -> Encoded:
    """One sequence of at most `max_tokens`: [bos] prompt answer eos.

    Too long an answer loses its end but keeps eos; too long a prompt loses its beginning. Without a
    prompt every token but the first is a label (the first has nothing before it to be predicted
    from).
    """
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    before = _prompt_ids(prompt, tokenizer, template) if prompt else []
    text = f" {answer}" if prompt and template != "chat" else answer
    after = (
        tokenizer.encode(text, add_special_tokens=False)[: max_tokens - len(begin) - len(end)] + end
    )
    room = max_tokens - len(begin) - len(after)
    before = before[len(before) - room :] if len(before) > room else before
    ids = (*begin, *before, *after)
    return Encoded(doc_id, ids, max(1, len(ids) - len(after)))


def prompt_text(prompt: str, tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The prompt as the model reads it: in the template, or as a user's turn of the tokenizer's own
    chat template.
    """
    if template != "chat":
        return template.replace("{prompt}", prompt)
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return str(text).removeprefix(tokenizer.bos_token or "")


def _prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    return list(
        tokenizer.encode(prompt_text(prompt, tokenizer, template), add_special_tokens=False)
    )


def collate(sequences: Sequence[Encoded], pad_id: int = 0) -> Batch:
    """Pad on the right to the longest sequence. Masks come from lengths, so the id
    that fills the rest changes nothing and an end token used for padding loses no label.
    """
    width = max(len(s.ids) for s in sequences)
    input_ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    present = torch.zeros((len(sequences), width), dtype=torch.bool)
    labelled = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        present[row, : len(sequence.ids)] = True
        labelled[row, sequence.start : len(sequence.ids)] = True
    return Batch(input_ids, present, labelled)


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
