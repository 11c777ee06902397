"""One pass of the model for all that a step looks at: the documents of both sides and their
companions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayunlearn.data.tokenize import Batch
from rayunlearn.models.forward import PrefixStart, outputs_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# what a pass gives, and the names of loss inputs that need it
LOGITS, HIDDEN = "logits", "hidden"
OUTPUT_OF = {"token_nll": LOGITS, "log_probs": LOGITS, "hidden": HIDDEN}


@dataclass(frozen=True, eq=False)
class PassRequest:
    """A batch, what is wanted of it (`OUTPUT_OF`), and where its pass begins."""

    batch: Batch
    outputs: frozenset[str]
    start: PrefixStart | None

    @property
    def kind(self) -> tuple[bool, int | None]:
        """Batches of one kind share a pass: those that run to the head, or those that end at the
        loss's block, from the same block on.
        """
        return LOGITS in self.outputs, None if self.start is None else self.start.block


class JointPass:
    """Collects batches, and runs the model on all of one kind when an output of any is asked for.

    model: one that packs (`models.forward.can_pack`). layer: the block whose output is `hidden`.
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self._model, self._layer = model, layer
        self._requests: list[PassRequest] = []
        self._outputs: dict[PassRequest, tuple[Tensor | None, Tensor | None]] = {}

    def add(self, batch: Batch, outputs: Collection[str], start: PrefixStart | None) -> PassRequest:
        """Note what will be asked for; nothing runs."""
        self._requests.append(PassRequest(batch, frozenset(outputs), start))
        return self._requests[-1]

    def logits(self, request: PassRequest) -> Tensor:
        """Logits (N, V), float32, of the batch's labels."""
        logits = self._of(request)[0]
        assert logits is not None
        return logits

    def hidden(self, request: PassRequest) -> Tensor:
        """Output (B, T, D) of the block, zero on padding."""
        hidden = self._of(request)[1]
        assert hidden is not None
        return hidden

    def _of(self, request: PassRequest) -> tuple[Tensor | None, Tensor | None]:
        if request not in self._outputs:
            together = [other for other in self._requests if other.kind == request.kind]
            needs_hidden = any(HIDDEN in other.outputs for other in together)
            outputs = outputs_of(
                self._model,
                [other.batch for other in together],
                [other.start for other in together],
                layer=self._layer if needs_hidden else None,
                logits=LOGITS in request.outputs,
            )
            self._outputs |= dict(zip(together, outputs, strict=True))
        return self._outputs[request]
