"""Which tokens of a forget document a forget loss counts:
settings of any forget loss (`token.*`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Encoded
from rayunlearn.errors import require
from rayunlearn.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


Positions = Mapping[str, frozenset[int]]


@dataclass(frozen=True, kw_only=True)
class TokenRule:
    """Token-level variants of a forget loss.

    temperature: logits are divided by it. keep: of every sequence, the max(1, round(keep x n)) of
    its n tokens with the SMALLEST NLL, those still remembered best. cap: a sequence whose summed
    NLL has reached it, in nats, counts no more (0: no cap). positions: by doc_id, the places in
    `Encoded.ids` that may count (empty: every label).

    Sources: temperature, loss selection and masking: code of "Unlearning with Control" (2406.09179,
    HEAD); the cap is the one-sided cap of its v1 code, there mean over {l < cap} of (cap - l). Here
    a sequence over the cap is a constant of the loss, so that any loss can be capped, and the mean
    still runs over the whole batch.
    """

    temperature: float = 1.0
    keep: float = 1.0
    cap: float = 0.0
    positions: Positions = field(default_factory=dict)

    @property
    def by_loss(self) -> bool:
        """Whether the loss itself decides which tokens count."""
        return self.keep < 1 or self.cap > 0

    @property
    def keeps_every_token(self) -> bool:
        """Whether all labels count."""
        return not self.by_loss and not self.positions

    @property
    def of_companions(self) -> TokenRule:
        """The rule of the companions of the documents: the same temperature, every token."""
        return TokenRule(temperature=self.temperature)


EVERY_TOKEN = TokenRule()


def token_mask(token_nll: Tensor, labelled: Tensor, rule: TokenRule) -> Tensor:
    """The labels that `rule.keep` and `rule.cap` leave, (B, T) bool. token_nll (B, T) in nats,
    labelled (B, T) bool.
    """
    n_kept = (rule.keep * labelled.sum(1, keepdim=True)).round().clamp(min=1)
    rank = token_nll.masked_fill(~labelled, torch.inf).argsort(dim=1, stable=True).argsort(1)
    selected = labelled & (rank < n_kept)
    return selected & (token_nll.sum(1, keepdim=True) < rule.cap) if rule.cap > 0 else selected


def allowed_positions(sequences: Sequence[Encoded], positions: Positions, like: Tensor) -> Tensor:
    """`positions` of the sequences as a mask (B, T) bool, of the shape and device of `like`; none
    for a document it lacks.
    """
    mask = torch.zeros(like.shape, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        mask[row, sorted(positions.get(sequence.doc_id, ()))] = True
    return mask.to(like.device)


def word_list(text: str) -> tuple[str, ...]:
    """The words of `token.words`: separated by commas,
    so that a word may be several ('' has none).
    """
    return tuple(word.strip() for word in text.split(",") if word.strip())


def word_positions(
    sequences: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, words: Sequence[str]
) -> dict[str, frozenset[int]]:
    """By doc_id, the label positions whose token touches one of the words, whole words only, in any
    case.

    Without words the mapping is empty, which restricts nothing. Raises UserError when no label of
    any sequence is left.
    """
    if not words:
        return {}
    positions = {s.doc_id: tokens_overlapping(s, tokenizer, words) for s in sequences}
    require(
        any(positions.values()),
        "token.words must have a word that occurs in a kept document's answer",
        ", ".join(words),
    )
    return positions


def tokens_overlapping(
    sequence: Encoded, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]
) -> frozenset[int]:
    """Label positions whose token touches one of the words, whole words only, in any case; none
    without words.

    A token's characters are what it adds to the decoded text.
    """
    if not words:
        return frozenset()
    pattern = re.compile(
        "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words), re.IGNORECASE
    )
    decode = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    ends = [len(decode(sequence.ids[: last + 1])) for last in range(len(sequence.ids))]
    text = decode(sequence.ids)
    spans = [match.span() for match in pattern.finditer(text)]
    starts = [0, *ends[:-1]]
    return frozenset(
        last
        for last in range(sequence.start, len(ends))
        if any(starts[last] < end and start < ends[last] for start, end in spans)
    )
