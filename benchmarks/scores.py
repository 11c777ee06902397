"""Scores of documents beside the plain way to get them: same machine, same run, same numbers.

    python benchmarks/scores.py [--documents N] [--size tiny|small]

`passes` beside a forward pass per document; `gradient_norms` beside a backward pass per document.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayunlearn.config import Data
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.data.tokenize import Batch, Encoded, by_length, collate, encode_documents
from rayunlearn.models.document_features import document_features
from rayunlearn.models.forward import token_nll
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.selectors.gradients import gradient_norms


def plain_passes(model: PreTrainedModel, sequences: list[Encoded]) -> Tensor:
    """Mean NLL of every document, one at a time."""
    return torch.cat(
        [
            torch.stack([p.token_nll.mean() for p in document_features(model, [s])])
            for s in sequences
        ]
    )


def batched_passes(model: PreTrainedModel, sequences: list[Encoded]) -> Tensor:
    """The same in batches."""
    return torch.stack([p.token_nll.mean() for p in document_features(model, sequences)])


def losses(model: PreTrainedModel, batch: Batch) -> Callable[[], Tensor]:
    """Summed NLL of every document of a batch."""
    return lambda: token_nll(model, batch).sum(1)


def plain_norms(model: PreTrainedModel, sequences: list[Encoded]) -> Tensor:
    """Gradient norm of every document by its own backward pass."""
    norms = []
    for sequence in sequences:
        model.zero_grad()
        losses(model, collate([sequence]))().sum().backward()
        norms.append(
            torch.stack([p.grad.square().sum() for p in model.parameters() if p.grad is not None])
            .sum()
            .sqrt()
        )
    return torch.stack(norms)


def batched_norms(model: PreTrainedModel, sequences: list[Encoded]) -> Tensor:
    """The same from the inputs and output gradients of every module."""
    norms = torch.zeros(len(sequences))
    for positions in by_length(sequences, 2048):
        batch = collate([sequences[p] for p in positions])
        norms[positions] = gradient_norms(model, [(batch, losses(model, batch))])
    return norms


def timed(
    function: Callable[[PreTrainedModel, list[Encoded]], Tensor],
    model: PreTrainedModel,
    sequences: list[Encoded],
) -> tuple[Tensor, float]:
    """The result and the least CPU time of three, in seconds: one thread, so what it takes on a
    core of its own.
    """
    seconds = []
    for _ in range(3):
        begun = time.process_time()
        result = function(model, sequences)
        seconds.append(time.process_time() - begun)
    return result.detach(), min(seconds)


def main() -> None:
    """Print documents per second of CPU time of each way, their ratio and their largest relative
    difference.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=160)
    parser.add_argument("--size", default="tiny")
    options = parser.parse_args()
    torch.set_num_threads(1)
    documents = generate_dataset(Data(size="small")).forget[: options.documents]
    tokenizer = build_tokenizer([d.answer for d in documents])
    sequences = encode_documents(documents, tokenizer, "{prompt}", 256)
    model = build_model(options.size, len(tokenizer), 0).eval()
    print(
        "| | plain, documents/s | ours, documents/s | ratio | largest relative difference"
        " |\n|---|---|---|---|---|"
    )
    for name, plain, ours in (
        ("forward scores", plain_passes, batched_passes),
        ("gradient norms", plain_norms, batched_norms),
    ):
        (expected, slow), (found, fast) = (
            timed(plain, model, sequences),
            timed(ours, model, sequences),
        )
        difference = float(((found - expected) / expected).abs().max())
        print(
            f"| {name}, {options.size} | {len(sequences) / slow:.0f} | {len(sequences) / fast:.0f}"
            f" | {slow / fast:.1f} | {difference:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
