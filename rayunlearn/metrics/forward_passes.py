"""The passes over the probes that give the metrics what they ask for (`table.INPUTS`): one
forward pass for all scores, then texts, letters and gradients where some metric wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayunlearn.data.documents import Document
from rayunlearn.data.multiple_choice import LETTERS, QUESTION_HEAD, letter_question
from rayunlearn.data.tokenize import Encoded, begin_ids, by_length, collate
from rayunlearn.errors import require
from rayunlearn.lazy import functional, torch
from rayunlearn.metrics.judge import AnswerJudge
from rayunlearn.models.folder import context_length
from rayunlearn.models.forward import (
    LEAST_DEVIATION,
    branching_batches,
    branching_logits,
    evaluating,
    label_ids,
    label_logits,
    score,
    token_nll,
    tokens_per_pass,
)
from rayunlearn.models.generate import Ids, ends_of, generate_texts
from rayunlearn.models.patching import key_sequence, patching_gaps, states_by_block
from rayunlearn.models.reference import Reference

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MetricInputs = dict[str, object]

# what is read off a pass over the answers, and off the one sorted pass over all sequences
ANSWER_SOURCES = frozenset({"scores", "moments", "base"})
FEW_SHOT_SOURCES = frozenset({"few-shot answers", "few-shot options"})
LIKELIHOOD_SOURCES = ANSWER_SOURCES | FEW_SHOT_SOURCES | {"options", "paraphrases", "completions"}
# what the kind of an option ends with
NUMBERS = tuple("0123456789")
LETTER_SOURCES = frozenset({"letters", "written letters", "letter places"})


@dataclass(frozen=True)
class Probe:
    """One probe as token ids: the answer, and the options with the true one first (empty without
    wrong answers).

    `paraphrased` is the answer after the question in other words; `completion` the key after a text
    without question and template; `few_shot` the answer and then the options after solved
    questions, () where there are none. `document` is what letters and texts are made from;
    `true_letter` is the place of the true option among the letters.
    """

    doc_id: str
    split: str
    answer: Encoded
    options: tuple[Encoded, ...]
    paraphrased: Encoded | None = None
    document: Document | None = None
    true_letter: int = 0
    completion: Encoded | None = None
    few_shot: tuple[Encoded, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How texts are written: at most `max_new_tokens`; `samples` of each prompt at `temperature`
    within `top_p`, made by `seed`.

    200 is TOFU's limit; MUSE takes 128 for verbatim and 32 for knowledge memorisation.
    """

    max_new_tokens: int = 200
    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    # solved questions to stand before a letter question, by topic
    shots: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PatchingTarget:
    """What activation patching compares with.

    `base` opens the base model, which computes with the states of others. `gold_gaps` says of each
    sequence (`models.patching.key_sequence`) what it loses with gold's states, (L,) nats, in order.
    Documents without a gap above `threshold` nats are not asked further: their value is null.
    """

    base: Callable[[], AbstractContextManager[PreTrainedModel]]
    gold_gaps: Callable[[Sequence[Encoded]], Sequence[Tensor]]
    threshold: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """What the passes work on. `base` must hold token_nll and log_probs of the answers where a
    metric compares with base; `judge` is asked where a metric is a judge's; `patching` is what
    metrics of hidden states compare with.
    """

    model: PreTrainedModel
    probes: Sequence[Probe]
    tokenizer: PreTrainedTokenizerBase | None = None
    base: Reference | None = None
    writing: GenerationSettings = GenerationSettings()
    judge: AnswerJudge | None = None
    patching: PatchingTarget | None = None

    def words(self) -> PreTrainedTokenizerBase:
        """The tokenizer. Raises UserError where none was given."""
        require(
            self.tokenizer is not None,
            "metrics of text and letters need a tokenizer",
            self.tokenizer,
        )
        assert self.tokenizer is not None
        return self.tokenizer

    def ends(self) -> tuple[Ids, ...]:
        """Where a text of the model ends: as it says itself, and as the probes' answers end."""
        return ends_of(self.model, self.words(), [probe.answer for probe in self.probes])


def gather_inputs(task: EvaluationTask, sources: frozenset[str]) -> list[MetricInputs]:
    """What the wanted passes give, per probe, in order. An input that a probe does not allow is
    left out.
    """
    gathered: list[MetricInputs] = [{} for _ in task.probes]
    for names, function in FORWARD_PASSES:
        if used := names & sources:
            for inputs, more in zip(gathered, function(task, used), strict=True):
                inputs |= more
    return gathered


def likelihood_pass(task: EvaluationTask, sources: frozenset[str]) -> list[MetricInputs]:
    """Answers, options, paraphrases and what else is scored, each only where an asked input is read
    off it; moments and base distances of the answers from the same logits.

    A batch holds sequences of one split and one kind, so no value depends, not even in its last
    bit, on which other metrics and splits are asked: products round by the shape of their batch.
    """
    require(
        "base" not in sources or task.base is not None,
        "metrics that compare with base need its outputs",
        task.base,
    )
    sequences = [
        (index, kind, s)
        for index, probe in enumerate(task.probes)
        for kind, s in asked_sequences(probe, sources, context_length(task.model.config))
    ]
    inputs: list[MetricInputs] = [{} for _ in task.probes]
    options: list[dict[str, Tensor]] = [{} for _ in task.probes]
    with evaluating(task.model):
        for chosen in _batches(task, sequences):
            for (index, kind, sequence), (own_nll, own_correct, own_logits) in zip(
                chosen, _forward_batch(task, chosen), strict=True
            ):
                if _is_option(kind):
                    options[index][kind] = own_nll
                else:
                    inputs[index] |= _text_inputs(kind, sequence, own_nll, own_correct, own_logits)
                if kind == "answer":
                    inputs[index] |= _distribution_inputs(task, sequence, own_logits, sources)
    return [
        answer_inputs | _options(probe, o)
        for probe, answer_inputs, o in zip(task.probes, inputs, options, strict=True)
    ]


def _forward_batch(
    task: EvaluationTask, chosen: Sequence[tuple[int, str, Encoded]]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each sequence of a batch the NLL (n,) of its labels, whether each is the greedy choice
    (n,), and their logits (n, V)."""
    batch = collate([s for _, _, s in chosen]).to(task.model.device)
    # the options of a question begin alike, and the question is read once for all of them
    forward = branching_logits if _is_option(chosen[0][1]) else label_logits
    logits, labels = forward(task.model, batch), label_ids(batch)
    nll = functional.cross_entropy(logits, labels, reduction="none").cpu()
    correct = (logits.argmax(-1) == labels).cpu()
    sizes = batch.labelled.sum(1).tolist()
    return list(zip(nll.split(sizes), correct.split(sizes), logits.split(sizes), strict=True))


def _text_inputs(
    kind: str, sequence: Encoded, nll: Tensor, correct: Tensor, logits: Tensor
) -> MetricInputs:
    """What is read off one sequence that is no option, from its labels' NLL (n,), whether each is
    the greedy choice (n,), and their logits (n, V).
    """
    if kind == "answer":
        key_inputs = _key_inputs(sequence, nll, logits, "key")
        return {"token_nll": nll, "correct": correct, **key_inputs}
    if kind == "paraphrased":
        return {"paraphrase_correct": correct}
    if kind == "few-shot":
        return {"few_shot_nll": nll}
    return _key_inputs(sequence, nll, logits, "completion")


def _batches(
    task: EvaluationTask, sequences: Sequence[tuple[int, str, Encoded]]
) -> Iterator[list[tuple[int, str, Encoded]]]:
    """The sequences (place of the probe, kind, sequence) in batches of one split and one kind."""
    groups: dict[tuple[str, str], list[tuple[int, str, Encoded]]] = {}
    for index, kind, sequence in sequences:
        # options are one kind, whatever their number
        key = (task.probes[index].split, kind.rstrip("".join(NUMBERS)))
        groups.setdefault(key, []).append((index, kind, sequence))
    for group in groups.values():
        texts = [s for _, _, s in group]
        batches = (
            branching_batches(task.model, texts)
            if _is_option(group[0][1])
            else by_length(texts, tokens_per_pass(task.model))
        )
        for positions in batches:
            yield [group[position] for position in positions]


def _is_option(kind: str) -> bool:
    """Whether sequences of the kind are options, which are numbered."""
    return kind.endswith(NUMBERS)


def ends_pass(task: EvaluationTask, _inputs: frozenset[str]) -> list[MetricInputs]:
    """How many tokens close each answer, which the model is not asked for."""
    return [{"n_end": probe.answer.n_end} for probe in task.probes]


def asked_sequences(
    probe: Probe, sources: frozenset[str], context: int | None = None
) -> list[tuple[str, Encoded]]:
    """The sequences of a probe that go through the model for these sources: `answer`,
    `paraphrased`, `completion`, the options by number, and after solved questions `few-shot` and
    the options; these only where all of them fit into the model's context.
    """
    chosen = [("answer", probe.answer)] if sources & ANSWER_SOURCES else []
    if "paraphrases" in sources and probe.paraphrased is not None:
        chosen.append(("paraphrased", probe.paraphrased))
    if "completions" in sources and probe.completion is not None:
        chosen.append(("completion", probe.completion))
    if "options" in sources:
        chosen += [(str(number), option) for number, option in enumerate(probe.options)]
    if context is not None and any(len(s.ids) > context for s in probe.few_shot):
        return chosen
    if "few-shot answers" in sources:
        chosen += [("few-shot", s) for s in probe.few_shot[:1]]
    if "few-shot options" in sources:
        chosen += [(f"few-shot {n}", option) for n, option in enumerate(probe.few_shot[1:])]
    return chosen


def greedy_text_pass(task: EvaluationTask, _inputs: frozenset[str]) -> list[MetricInputs]:
    """The answer as text, and the text that a continuation should be."""
    tokenizer = task.words()
    decoded = [_text(tokenizer, words_to_follow(p)) for p in task.probes]
    texts = [
        (p.document.answer, p.document.prompt) if p.document else ("", "") for p in task.probes
    ]
    return [
        {"answer": answer or rest, "truth": answer if prompt else rest}
        for (answer, prompt), rest in zip(texts, decoded, strict=True)
    ]


def greedy_pass(task: EvaluationTask, _inputs: frozenset[str]) -> list[MetricInputs]:
    """The greedy continuation of every prompt, whole and cut to as many tokens as the truth has."""
    tokenizer = task.words()
    texts = generate_texts(
        task.model,
        [prompt_and_answer(p)[0] for p in task.probes],
        ends=task.ends(),
        max_new_tokens=task.writing.max_new_tokens,
    )
    n_words = [len(words_to_follow(p)) for p in task.probes]
    return [
        {"generated": _text(tokenizer, ids), "continuation": _text(tokenizer, ids[:n])}
        for ids, n in zip(texts, n_words, strict=True)
    ]


def sampling_pass(task: EvaluationTask, _inputs: frozenset[str]) -> list[MetricInputs]:
    """`writing.samples` drawn continuations of every prompt, each from a seed of its own."""
    tokenizer, writing = task.words(), task.writing
    continuations = generate_texts(
        task.model,
        [prompt_and_answer(p)[0] for p in task.probes for _ in range(writing.samples)],
        ends=task.ends(),
        max_new_tokens=writing.max_new_tokens,
        temperature=writing.temperature,
        top_p=writing.top_p,
        seeds=[
            f"{p.doc_id}/{writing.seed}/{number}"
            for p in task.probes
            for number in range(writing.samples)
        ],
    )
    texts = [_text(tokenizer, ids) for ids in continuations]
    return [
        {"samples": tuple(texts[index * writing.samples : (index + 1) * writing.samples])}
        for index in range(len(task.probes))
    ]


def letter_pass(task: EvaluationTask, sources: frozenset[str]) -> list[MetricInputs]:
    """Letter scores and the letter written, whichever is asked, for probes with a question and
    options; nothing where the vocabulary has no letters or the question leaves no position to
    answer.

    As many tokens are written as the longest letter has, one as a rule.
    """
    prompts, spelt = _letter_questions(task)
    inputs: list[MetricInputs] = [{} for _ in task.probes]
    for index in prompts:
        probe = task.probes[index]
        inputs[index] = {"true_letter": probe.true_letter, "n_options": len(probe.options)}
    if "letters" in sources:
        logits = letter_scores(task.model, list(prompts.values()), spelt) if prompts else []
        for index, letter_logits in zip(prompts, logits, strict=True):
            inputs[index]["letter_logits"] = letter_logits[: len(task.probes[index].options)]
    if "written letters" in sources:
        written = generate_texts(
            task.model,
            list(prompts.values()),
            ends=task.ends(),
            max_new_tokens=max(map(len, spelt), default=1),
        )
        for index, text in zip(prompts, written, strict=True):
            inputs[index]["letter_text"] = _text(task.words(), text)
    return inputs


def _letter_questions(
    task: EvaluationTask,
) -> tuple[dict[int, tuple[int, ...]], Sequence[tuple[int, ...]]]:
    """(prompt ids by position of the probe, ids of each letter), for probes that can be asked by
    letters; nothing where the vocabulary has no letters.
    """
    tokenizer = task.words()
    questions = [
        index
        for index, p in enumerate(task.probes)
        if p.document is not None and p.document.prompt and p.document.wrong
    ]
    spelt = spelt_letters(
        tokenizer, max((len(task.probes[i].options) for i in questions), default=2)
    )
    if spelt is None:
        return {}, ()
    # no setting bounds the options and the solved questions that stand before them: a question that
    # leaves no room to answer has no value, and a mean says over how many it is
    context = context_length(task.model.config)
    prompts = {
        index: letter_prompt(task.probes[index], tokenizer, task.writing.shots)
        for index in questions
    }
    fitting = {i: ids for i, ids in prompts.items() if context is None or len(ids) < context}
    return fitting, spelt


def gradient_pass(task: EvaluationTask, _inputs: frozenset[str]) -> list[MetricInputs]:
    """Gradient norms of the answers, one backward pass each, in evaluation mode (open-unlearning
    leaves dropout on).
    """
    model, was_training = task.model, task.model.training
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    model.eval().requires_grad_(True)
    try:
        return [{"gradient_norm": _gradient_norm(model, p.answer)} for p in task.probes]
    finally:
        model.train(was_training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def patching_pass(task: EvaluationTask, _inputs: frozenset[str]) -> list[MetricInputs]:
    """What base loses with the states of gold and of the model at each block, split by split.

    A split's states are in main memory at once: key tokens x blocks x width x 4 bytes, 0.5 MB for a
    key of four tokens and 16 blocks of width 2048.
    """
    require(
        task.patching is not None,
        "metrics of hidden states need a base and a gold model to compare with",
        task.patching,
    )
    assert task.patching is not None
    inputs: list[MetricInputs] = [{} for _ in task.probes]
    for split in dict.fromkeys(probe.split for probe in task.probes):
        asked = {
            index: sequence
            for index, probe in enumerate(task.probes)
            # a key that begins the text is predicted by nothing
            if probe.split == split
            and 0 < (sequence := key_sequence(probe.answer)).start < len(sequence.ids)
        }
        of_gold = task.patching.gold_gaps(list(asked.values())) if asked else []
        gold_gaps = dict(zip(asked, of_gold, strict=True))
        wanted = [i for i, gap in gold_gaps.items() if float(gap.max()) > task.patching.threshold]
        sequences = [asked[index] for index in wanted]
        states = states_by_block(task.model, sequences)
        if wanted:
            with task.patching.base() as base:
                own_gaps = patching_gaps(base, sequences, states)
            for index, own_gap in zip(wanted, own_gaps, strict=True):
                inputs[index] = {"gold_gap": gold_gaps[index], "own_gap": own_gap}
    return inputs


# Which sources a pass serves, and the pass.
FORWARD_PASSES: tuple[
    tuple[frozenset[str], Callable[[EvaluationTask, frozenset[str]], list[MetricInputs]]], ...
] = (
    (frozenset({"ends"}), ends_pass),
    (LIKELIHOOD_SOURCES, likelihood_pass),
    (frozenset({"words"}), greedy_text_pass),
    (frozenset({"greedy"}), greedy_pass),
    (frozenset({"samples"}), sampling_pass),
    (LETTER_SOURCES, letter_pass),
    (frozenset({"gradients"}), gradient_pass),
    (frozenset({"patching"}), patching_pass),
)


def prompt_and_answer(probe: Probe) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(prompt ids, ids that should follow): before and after the border, or the halves of a text
    without a question.

    A probe that an attack has made of ids has no document: there a border after the first id says
    that it has no question.
    """
    sequence, document = probe.answer, probe.document
    is_asked = bool(document.prompt) if document else sequence.start > 1
    border = sequence.start if is_asked else max(1, len(sequence.ids) // 2)
    return sequence.ids[:border], sequence.ids[border:]


def words_to_follow(probe: Probe) -> tuple[int, ...]:
    """The ids that should follow the prompt, without those that close the answer."""
    after = prompt_and_answer(probe)[1]
    return after[: len(after) - probe.answer.n_end]


def spelt_letters(
    tokenizer: PreTrainedTokenizerBase, n_options: int
) -> list[tuple[int, ...]] | None:
    """Token ids that each letter has after "Answer:": with a space before it, or without one where
    the vocabulary cannot write that. None where some letter has none of its own.
    """
    require(n_options <= len(LETTERS), f"options must be at most {len(LETTERS)}", n_options)
    ways = [
        [_ids_behind("Answer:", before + letter, tokenizer) for letter in LETTERS[:n_options]]
        for before in (" ", "")
    ]
    usable = [
        way
        for way in ways
        if len(set(way)) == n_options
        and all(ids and tokenizer.unk_token_id not in ids for ids in way)
    ]
    return usable[0] if usable else None


def letter_scores(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    spelt: Sequence[tuple[int, ...]],
) -> list[Tensor]:
    """(k,) float32 per prompt, higher is likelier: the letters' logits after what they share, in
    one pass, where a single token tells them apart; their summed log-probabilities, k sequences per
    prompt, where a tokenizer spells them in different lengths."""
    shared = spelt[0][:-1]
    if all(ids[:-1] == shared for ids in spelt):
        return [
            logits[[ids[-1] for ids in spelt]]
            for logits in last_logits(model, [(*prompt, *shared) for prompt in prompts])
        ]
    sequences = [
        Encoded(f"{index}/{n}", (*prompt, *ids), len(prompt))
        for index, prompt in enumerate(prompts)
        for n, ids in enumerate(spelt)
    ]
    sums = [-scored.token_nll.sum() for scored in score(model, sequences)]
    return [
        torch.stack(sums[index * len(spelt) : (index + 1) * len(spelt)])
        for index in range(len(prompts))
    ]


def last_logits(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
) -> list[Tensor]:
    """Next-token logits (V,) float32 after each prompt, on the CPU, in the order given."""
    # its one label is where we look
    sequences = [
        Encoded(str(index), (*prompt, 0), len(prompt)) for index, prompt in enumerate(prompts)
    ]
    logits: dict[int, Tensor] = {}
    with evaluating(model):
        for positions in by_length(sequences, 8192):
            batch = collate([sequences[p] for p in positions]).to(model.device)
            logits |= dict(zip(positions, label_logits(model, batch).cpu(), strict=True))
    return [logits[index] for index in range(len(prompts))]


def _distribution_inputs(
    task: EvaluationTask, answer: Encoded, logits: Tensor, sources: frozenset[str]
) -> MetricInputs:
    """Moments of log p and distances from base, from the answer's logits (n, V)."""
    if not sources & {"moments", "base"}:
        return {}
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    inputs: MetricInputs = {}
    if "moments" in sources:
        mean = (p * log_p).sum(-1)
        # not E[x^2] - E[x]^2, whose rounding is as large as the clamp
        variance = (p * (log_p - mean[:, None]).square()).sum(-1)
        inputs |= {
            "log_prob_mean": mean.cpu(),
            "log_prob_deviation": variance.clamp(min=LEAST_DEVIATION**2).sqrt().cpu(),
        }
    if "base" in sources and task.base is not None:
        alone = collate([answer]).to(logits.device)
        before = task.base.log_probs([answer], alone)
        inputs |= {
            "base_nll": task.base.token_nll([answer], alone)[alone.labelled].cpu(),
            "kl": (before.exp() * (before - log_p)).sum(-1).cpu(),
        }
    return inputs


def _key_inputs(sequence: Encoded, nll: Tensor, logits: Tensor, name: str) -> MetricInputs:
    """NLL (m,) and ranks (m,) of the tokens of the key, from those of all labels: nll (n,), logits
    (n, V); nothing without a key.
    """
    if sequence.key is None:
        return {}
    first, last = sequence.key
    key_logits = logits[first:last]
    ids = sequence.ids[sequence.start + first : sequence.start + last]
    true = key_logits.gather(1, torch.tensor(ids, device=key_logits.device)[:, None])
    return {f"{name}_nll": nll[first:last], f"{name}_ranks": 1 + (key_logits > true).sum(1).cpu()}


def _options(probe: Probe, by_kind: Mapping[str, Tensor]) -> MetricInputs:
    """What is read off the options, and off the options after solved questions."""
    plain, few_shot = (
        [by_kind[kind] for n in range(len(probe.options)) if (kind := f"{before}{n}") in by_kind]
        for before in ("", "few-shot ")
    )
    inputs: MetricInputs = {}
    if plain:
        inputs["option_nll"] = torch.stack([o.mean() for o in plain])
        inputs["option_nll_sum"] = torch.stack([o.sum() for o in plain])
    if few_shot:
        inputs["few_shot_option_nll"] = torch.stack([o.mean() for o in few_shot])
    keys = [option.key for option in probe.options[1:]]
    if plain and keys and None not in keys:
        inputs["wrong_key_nll"] = torch.stack(
            [nll[slice(*key)].sum() for nll, key in zip(plain[1:], keys, strict=True) if key]
        )
    return inputs


def letter_prompt(
    probe: Probe, tokenizer: PreTrainedTokenizerBase, shots: Mapping[str, str]
) -> tuple[int, ...]:
    """Ids of the question with its options by letter, after the solved ones of its topic."""
    assert probe.document is not None
    text = (
        QUESTION_HEAD
        + shots.get(probe.document.topic, "")
        + letter_question(probe.document, probe.true_letter)
    )
    return (*begin_ids(tokenizer), *tokenizer.encode(text, add_special_tokens=False))


def _ids_behind(before: str, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What `text` adds to the ids of `before`; () where it changes those as well."""
    stem = tokenizer.encode(before, add_special_tokens=False)
    with_text = tokenizer.encode(before + text, add_special_tokens=False)
    return tuple(with_text[len(stem) :]) if with_text[: len(stem)] == stem else ()


def _gradient_norm(
    model: PreTrainedModel,
    answer: Encoded,
) -> float:
    batch = collate([answer]).to(model.device)
    loss = token_nll(model, batch).sum() / batch.labelled.sum()
    norms = [
        g
        for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        if g is not None
    ]
    return float(torch.stack([g.float().norm() for g in norms]).mean())


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
