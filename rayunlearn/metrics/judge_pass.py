"""The judge's pass: what a chat model gives to each verdict on what was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rayunlearn.data.documents import Document
from rayunlearn.data.multiple_choice import LETTERS
from rayunlearn.errors import require
from rayunlearn.lazy import torch
from rayunlearn.metrics.forward_passes import EvaluationTask, MetricInputs, letter_scores
from rayunlearn.metrics.judge import VERDICTS, AnswerJudge, GivenAnswer, Verdict, judge_messages
from rayunlearn.models.chat import chat_text, encode_text
from rayunlearn.models.folder import context_length

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_LETTERS = "the judge's vocabulary does not tell the option letters apart"
NO_ROOM = "the question and the answer leave no room in the judge's context"


def judge_with(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> AnswerJudge:
    """A chat model as a function from given answers to verdicts, in the order given.

    Raises UserError for a tokenizer without a chat template.
    """
    has_template = bool(tokenizer.chat_template)
    require(has_template, "judge.answers must be a chat model: its tokenizer has", "no template")

    def judge(answers: Sequence[GivenAnswer]) -> list[Verdict]:
        # equal answers are asked once, whichever document they are of
        different = list(dict.fromkeys(answers))
        verdicts = dict(zip(different, _verdicts(model, tokenizer, different), strict=True))
        return [verdicts[answer] for answer in answers]

    return judge


def judged_inputs(task: EvaluationTask, gathered: Sequence[MetricInputs]) -> list[MetricInputs]:
    """The judge's verdict on the greedy text of every probe, in order. Raises UserError without a
    judge.
    """
    judge = task.judge
    rule = "metrics that a judge decides (judged_*) need a chat model, judge.answers"
    require(judge is not None, rule, "")
    assert judge is not None
    answers = [
        GivenAnswer(_question(probe.document), str(inputs["truth"]), str(inputs["generated"]))
        for probe, inputs in zip(task.probes, gathered, strict=True)
    ]
    judged: list[MetricInputs] = []
    for verdict in judge(answers):
        inputs: MetricInputs = {"verdict": verdict}
        if verdict.probabilities:
            inputs["verdict_probabilities"] = torch.tensor(verdict.probabilities)
        judged.append(inputs)
    return judged


def _verdicts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, answers: Sequence[GivenAnswer]
) -> list[Verdict]:
    n_options = len(VERDICTS)
    texts = [
        [chat_text(tokenizer, judge_messages(answer, first)) for first in range(n_options)]
        for answer in answers
    ]
    prompts = [[encode_text(text, tokenizer) for text in of_answer] for of_answer in texts]
    spelt = _letters_behind(texts[0][0], tokenizer, n_options) if texts else []
    if texts and not spelt:
        return [Verdict((), NO_LETTERS) for _ in answers]
    context, longest = context_length(model.config), max(map(len, spelt), default=1)
    fitting = [
        index
        for index, of_answer in enumerate(prompts)
        if context is None or max(map(len, of_answer)) + longest <= context
    ]
    all_prompts = [prompt for index in fitting for prompt in prompts[index]]
    scores = letter_scores(model, all_prompts, spelt) if all_prompts else []
    verdicts = [Verdict((), NO_ROOM) for _ in answers]
    for number, index in enumerate(fitting):
        letters = scores[n_options * number : n_options * (number + 1)]
        verdicts[index] = Verdict(_averaged(letters))
    return verdicts


def _averaged(scores: Sequence[Tensor]) -> tuple[float, ...]:
    """Probability of each verdict, mean over the places it stood at; `scores[first]` are those of
    the letters where verdict `first` stood at A.
    """
    n = len(scores)
    # rolled back, so that place k holds verdict k again
    turned = [s.double().softmax(-1).roll(first) for first, s in enumerate(scores)]
    mean = torch.stack(turned).sum(0) / n
    return tuple(float(p) for p in mean)


def _letters_behind(
    text: str, tokenizer: PreTrainedTokenizerBase, n_options: int
) -> list[tuple[int, ...]]:
    """Ids of each letter at the beginning of the judge's answer; [] where some letter has none of
    its own.
    """
    stem = encode_text(text, tokenizer)
    ways: list[list[tuple[int, ...]]] = []
    for before in ("", " "):
        whole = [encode_text(f"{text}{before}{a}", tokenizer) for a in LETTERS[:n_options]]
        ways.append([ids[len(stem) :] if ids[: len(stem)] == stem else () for ids in whole])
    usable = [
        way
        for way in ways
        if len(set(way)) == n_options
        and all(ids and tokenizer.unk_token_id not in ids for ids in way)
    ]
    return usable[0] if usable else []


def _question(document: Document | None) -> str:
    return document.prompt if document else ""
