"""What the layers know although the output does not say it: the logit lens, and linear probes on
hidden states.

Rows have `x`, the block (0-based). A probe's rows stand beside those of the same probe fitted to
shuffled labels: what is above them is in the states and not in the fitting.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from rayunlearn.attacks.base import TOKENS_PER_BATCH, AttackRow
from rayunlearn.data.tokenize import Encoded, by_length, collate
from rayunlearn.errors import require
from rayunlearn.lazy import functional, np, torch
from rayunlearn.metrics.forward_passes import Probe
from rayunlearn.metrics.likelihood import probability
from rayunlearn.metrics.multiple_choice import multiple_choice
from rayunlearn.models.forward import blocks, evaluating, normed_states
from rayunlearn.models.logits import logits_of_states, require_split
from rayunlearn.ranges import Positive
from rayunlearn.schema import Rows

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def logit_lens(
    model: PreTrainedModel,
    probes: Sequence[Probe],
) -> Rows:
    """`probability` and `multiple_choice` of every probe as each block's output would have it:
    through the final norm, the head and what the family does to its logits.

    nostalgebraist 2020; on unlearned models 2409.18025, which reads letters and also looks between
    attention and MLP: we read the answers themselves, after whole blocks. The last block's rows are
    the model's own.
    """
    sequences = [s for p in probes for s in (p.answer, *p.options)]
    nll = iter(lens_nll(model, sequences))
    rows: Rows = []
    for probe in probes:
        answer, options = next(nll), [next(nll) for _ in probe.options]
        for layer in range(len(answer)):
            rows.append(_row(probe, "probability", probability(answer[layer]), layer))
            means = torch.stack([o[layer].mean() for o in options]) if options else None
            rows.append(
                _row(
                    probe,
                    "multiple_choice",
                    None if means is None else multiple_choice(means),
                    layer,
                )
            )
    return rows


def linear_probe(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    seed: int,
    *,
    inverse_penalty: Positive = 1.0,
) -> Rows:
    """Which answer a question has, read off its last state by a linear probe fitted on split retain
    and asked on forget.

    Alain & Bengio 1610.01644; on unlearned models 2506.10236. Answers are the classes:
    `probe_right` is 1 where the probe names the true one among all, null where no retain question
    has that answer. `probe_right_shuffled` is the same probe fitted to shuffled answers. Ours:
    multinomial logistic regression on standardised states, `inverse_penalty` as in scikit-learn.
    Raises UserError when the retain questions have fewer than two answers.
    """
    return _named(
        model, [p for p in probes if p.split == "retain"], _forgotten(probes), seed, inverse_penalty
    )


def linear_probe_held_in(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    held_in: Sequence[Probe],
    seed: int,
    *,
    inverse_penalty: Positive = 1.0,
) -> Rows:
    """`linear_probe` fitted on the held-in half of the forget questions: knowledge that retain
    cannot train the probe to read.
    """
    return _named(model, held_in, _held_out(probes, held_in), seed, inverse_penalty)


def truth_probe(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    held_in: Sequence[Probe],
    seed: int,
    *,
    inverse_penalty: Positive = 1.0,
) -> Rows:
    """Which option is true, by a linear probe on the last state of question and option. After
    Azaria & Mitchell 2304.13734.

    Fitted on retain and held-in forget probes, true against false; `probe_choice` is
    `multiple_choice` by its score on the other forget probes, null without options, and
    `probe_choice_shuffled` the same with a random option of each called true. It needs no two
    questions with one answer. Raises UserError when no probe to fit on has options.
    """
    fitted = [p for p in (*(q for q in probes if q.split == "retain"), *held_in) if p.options]
    held_out = _held_out(probes, held_in)
    require(
        bool(fitted),
        "a truth probe must have questions with options to be fitted on, got",
        len(fitted),
    )
    states = _option_states(model, fitted)
    has_options = any(p.options for p in held_out)
    held_out_states = _option_states(model, held_out) if has_options else states[:0]
    rng = np.random.default_rng(seed)
    true_options = {
        "probe_choice": [0] * len(fitted),
        "probe_choice_shuffled": [int(rng.integers(len(p.options))) for p in fitted],
    }
    rows: Rows = []
    for layer in range(states.shape[1]):
        for metric, places in true_options.items():
            scores, _ = _fit(states[:, layer], _is_option(fitted, places), inverse_penalty)
            margins = scores(held_out_states[:, layer])[:, 1] if len(held_out_states) else ()
            margins = torch.as_tensor(margins, dtype=torch.float32)
            rows += _choice_rows(held_out, margins, metric, layer)
    return rows


def _is_option(probes: Sequence[Probe], positions: Sequence[int]) -> list[bool]:
    """Of every option of every probe in order: whether it stands at the probe's position."""
    return [
        index == position
        for probe, position in zip(probes, positions, strict=True)
        for index in range(len(probe.options))
    ]


def _option_states(model: PreTrainedModel, probes: Sequence[Probe]) -> Tensor:
    """`last_states` of every option of the probes, in order, before what closes it."""
    return last_states(model, [o for p in probes for o in p.options], before_end=True)


def _choice_rows(probes: Sequence[Probe], margins: Tensor, metric: str, layer: int) -> Rows:
    """`multiple_choice` by the margins (options of all probes, in order); null without options."""
    counts = [len(probe.options) for probe in probes]
    return [
        _row(probe, metric, multiple_choice(-values) if len(values) else None, layer)
        for probe, values in zip(probes, margins.split(counts), strict=True)
    ]


def lens_nll(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
) -> list[Tensor]:
    """Token NLL (blocks, n) float32 of each sequence's n labels, read from every block's output; on
    the CPU, in the order given.
    """
    require_split(model, "answers read from every block")
    nll_by_sequence: dict[int, Tensor] = {}
    with evaluating(model):
        for positions in by_length(sequences, TOKENS_PER_BATCH):
            batch = collate([sequences[p] for p in positions]).to(model.device)
            labels = batch.input_ids.flatten()[batch.places]
            states = block_states(model, batch.input_ids, batch.places - 1)
            lens = (logits_of_states(model, normed_states(model, state)) for state in states)
            nll = torch.stack(
                [functional.cross_entropy(logits, labels, reduction="none") for logits in lens]
            ).cpu()
            nll_by_sequence |= dict(
                zip(positions, nll.split(batch.labelled.sum(1).tolist(), 1), strict=True)
            )
    return [nll_by_sequence[p] for p in range(len(sequences))]


def last_states(
    model: PreTrainedModel, sequences: Sequence[Encoded], *, before_end: bool = False
) -> Tensor:
    """States (n, blocks, D) float32, on the CPU: after a sequence's question, or with `before_end`
    after its last token but those that close it.
    """
    states_by_sequence: dict[int, Tensor] = {}
    with evaluating(model):
        for positions in by_length(sequences, TOKENS_PER_BATCH):
            chosen = [sequences[p] for p in positions]
            batch = collate(chosen).to(model.device)
            width = batch.input_ids.shape[1]
            ends = [max(s.start, len(s.ids) - s.n_end) if before_end else s.start for s in chosen]
            places = torch.tensor(
                [row * width + end - 1 for row, end in enumerate(ends)], device=model.device
            )
            states = torch.stack(block_states(model, batch.input_ids, places), 1).float().cpu()
            states_by_sequence |= dict(zip(positions, states, strict=True))
    return torch.stack([states_by_sequence[p] for p in range(len(sequences))])


def block_states(model: PreTrainedModel, input_ids: Tensor, places: Tensor) -> list[Tensor]:
    """Output (N, D) of every block at `places` (N,), positions of `input_ids` (B, T) laid out row
    by row.
    """
    caught: list[Tensor] = []

    def keep(
        _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        caught.append(hidden.flatten(0, 1).index_select(0, places))

    handles = [block.register_forward_hook(keep) for block in blocks(model)]
    try:
        model.base_model(input_ids=input_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return caught


def _named(
    model: PreTrainedModel,
    fitted: Sequence[Probe],
    held_out: Sequence[Probe],
    seed: int,
    inverse_penalty: float,
) -> Rows:
    """Rows of `probe_right` and `probe_right_shuffled` for the probes asked, with the answers of
    the others as classes.
    """
    names = [_probe_answer(p) for p in fitted]
    require(
        len(set(names)) > 1,
        "a linear probe must be fitted on questions of two answers or more, got",
        len(set(names)),
    )
    states = last_states(model, [p.answer for p in fitted])
    held_out_states = last_states(model, [p.answer for p in held_out]) if held_out else states[:0]
    order = np.random.default_rng(seed).permutation(len(names))
    labels = {"probe_right": names, "probe_right_shuffled": [names[index] for index in order]}
    rows: Rows = []
    for layer in range(states.shape[1]):
        for metric, classes in labels.items():
            scores, class_names = _fit(states[:, layer], classes, inverse_penalty)
            chosen = (
                scores(held_out_states[:, layer]).argmax(1).tolist() if len(held_out_states) else []
            )
            for probe, index in zip(held_out, chosen, strict=True):
                answer = _probe_answer(probe)
                right = float(class_names[index] == answer) if answer in class_names else None
                rows.append(_row(probe, metric, right, layer))
    return rows


def _fit(
    states: Tensor, classes: Sequence[Hashable], inverse_penalty: float
) -> tuple[Callable[[Tensor], Tensor], list[Hashable]]:
    """A logistic regression of the classes on states (n, D): a function from states to margins (m,
    C), and the C classes, True last.
    """
    # takes a second to import, and few trials look inside
    from sklearn.linear_model import LogisticRegression

    class_names = sorted(dict.fromkeys(classes), key=lambda name: (name is True, repr(name)))
    mean, deviation = states.mean(0), states.std(0, correction=0).clamp(min=1e-6)
    fitted = LogisticRegression(C=inverse_penalty, max_iter=5000).fit(
        ((states - mean) / deviation).numpy(), [class_names.index(c) for c in classes]
    )

    def scores(held_out_states: Tensor) -> Tensor:
        margin = torch.from_numpy(
            fitted.decision_function(((held_out_states - mean) / deviation).numpy())
        )
        return torch.stack([-margin, margin], 1) if margin.dim() == 1 else margin

    return scores, class_names


def _probe_answer(probe: Probe) -> tuple[int, ...]:
    return probe.answer.ids[probe.answer.start :]


def _forgotten(probes: Sequence[Probe]) -> list[Probe]:
    return [p for p in probes if p.split == "forget"]


def _held_out(probes: Sequence[Probe], held_in: Sequence[Probe]) -> list[Probe]:
    seen = {p.doc_id for p in held_in}
    return [p for p in _forgotten(probes) if p.doc_id not in seen]


def _row(probe: Probe, metric: str, value: float | None, layer: int) -> dict[str, object]:
    return {
        "doc_id": probe.doc_id,
        "split": probe.split,
        "metric": metric,
        "value": value,
        "x": layer,
    }


PROBING = {
    row.function.__name__: row
    for row in (
        AttackRow(
            function=logit_lens,
            kind="inside",
            title="answers read from every block's output",
            source="2409.18025; answers instead of letters are ours",
        ),
        AttackRow(
            function=linear_probe,
            kind="inside",
            title="a linear probe fitted on retain names the answer",
            source="1610.01644; after 2506.10236; the set-up is ours",
            control="the same probe fitted to shuffled answers; base and gold",
        ),
        AttackRow(
            function=linear_probe_held_in,
            kind="inside",
            title="the same, fitted on half of the forget questions",
            source="1610.01644; the set-up is ours",
            control="the same probe fitted to shuffled answers; base and gold",
            holds_out=True,
        ),
        AttackRow(
            function=truth_probe,
            kind="inside",
            title="a linear probe tells the true option from the others",
            source="after 2304.13734; the set-up is ours",
            control="the same probe with a random option called true; base and gold",
            holds_out=True,
        ),
    )
}
