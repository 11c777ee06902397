"""Scores of documents beside the plain way to get them: same machine, same run, same numbers.

    python -m benchmarks.scores [--documents N] [--size tiny|small]

`passes` beside a forward pass per document; `gradient_norms` beside a backward pass per document;
the cheap metrics of probes beside a pass per answer and option.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.provenance import provenance
from rayunlearn.config import Data, Trial
from rayunlearn.data.synthetic import generate_dataset
from rayunlearn.data.tokenize import Batch, Encoded, by_length, collate, encode_documents
from rayunlearn.metrics.evaluate import evaluate_probes
from rayunlearn.metrics.forward_passes import Probe, asked_sequences
from rayunlearn.metrics.table import CHEAP, sources_of
from rayunlearn.models.document_features import document_features
from rayunlearn.models.forward import token_nll
from rayunlearn.models.scratch import build_model, build_tokenizer
from rayunlearn.registry import check_trial
from rayunlearn.selectors.gradients import gradient_norms
from rayunlearn.train.teach import training_texts
from rayunlearn.trial.probes import probes_of_trial


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


def plain_measuring(model: PreTrainedModel, probes: list[Probe]) -> Tensor:
    """Probability of every answer, and what the other cheap metrics ask, a sequence at a time."""
    values = []
    with torch.no_grad():
        for probe in probes:
            for kind, sequence in asked_sequences(probe, sources_of(CHEAP.values())):
                batch = collate([sequence])
                nll = token_nll(model, batch).sum() / batch.labelled.sum()
                values += [torch.exp(-nll)] if kind == "answer" else []
    return torch.stack(values)


def our_measuring(model: PreTrainedModel, probes: list[Probe]) -> Tensor:
    """The same with all cheap metrics."""
    rows = evaluate_probes(model, probes)
    return torch.tensor([row["value"] for row in rows if row["metric"] == "probability"])


Way = Callable[[PreTrainedModel, list[Any]], Tensor]


def in_turn(
    ways: Sequence[Way], model: PreTrainedModel, sequences: list[Any]
) -> list[tuple[Tensor, float]]:
    """Of each way its result and the least CPU time of three, in seconds, all ways in turn."""
    results: list[list[tuple[Tensor, float]]] = [[] for _ in ways]
    for _ in range(3):
        for way, of_way in zip(ways, results, strict=True):
            begun = time.process_time()
            result = way(model, sequences).detach()
            of_way.append((result, time.process_time() - begun))
    return [min(of_way, key=lambda pair: pair[1]) for of_way in results]


def main() -> None:
    """Print documents per second of CPU time of each way, their ratio and their largest relative
    difference.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=160)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    corpus = generate_dataset(Data(size="small"))
    documents = corpus.forget[: options.documents]
    asked = [d for split in corpus.probes.values() for d in split]
    tokenizer = build_tokenizer(
        [d.answer for d in documents] + list(training_texts(asked, Data.template))
    )
    sequences = encode_documents(documents, tokenizer, "{prompt}", 256)
    model = build_model(options.size, len(tokenizer), 0).eval()
    print(
        "| | plain, documents/s | ours, documents/s | ratio | largest relative difference"
        " |\n|---|---|---|---|---|"
    )
    rows = []
    probes = probes_of_trial(check_trial(Trial()), corpus, tokenizer)[: options.documents]
    for name, plain, ours, items in (
        ("forward scores", plain_passes, batched_passes, sequences),
        ("gradient norms", plain_norms, batched_norms, sequences),
        ("measuring", plain_measuring, our_measuring, probes),
    ):
        (expected, slow), (found, fast) = in_turn([plain, ours], model, items)
        difference = float(((found - expected) / expected).abs().max())
        print(
            f"| {name}, {options.size} | {len(items) / slow:.0f} | {len(items) / fast:.0f}"
            f" | {slow / fast:.1f} | {difference:.0e} |",
            flush=True,
        )
        rows.append(
            {
                "scores": name,
                "size": options.size,
                "documents": len(items),
                "plain_cpu": slow,
                "ours_cpu": fast,
                "ratio_cpu": fast / slow,
                "difference": difference,
            }
            | provenance()
        )
    options.output.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(options.output / f"scores-{options.size}.parquet")


if __name__ == "__main__":
    main()
