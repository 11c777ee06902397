"""The metrics of one document, as one table, and what each of them may ask for by the name of a
positional parameter.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rayunlearn.metrics.judge import (
    judged_gibberish,
    judged_refused,
    judged_same_fact,
    judged_wrong,
)
from rayunlearn.metrics.key import (
    completion_probability,
    completion_rank,
    key_chance,
    key_multiple_choice,
    key_probability,
    key_rank,
    wrong_key_probability,
)
from rayunlearn.metrics.likelihood import (
    base_kl,
    exact_memorization,
    extraction_strength,
    extraction_strength_paraphrase,
    option_probability,
    perplexity,
    probability,
    probability_few_shot,
    sequence_probability,
    truth_ratio,
    truth_ratio_arithmetic,
    truth_ratio_even,
    truth_ratio_right,
    wrong_option_probability,
)
from rayunlearn.metrics.membership import (
    gradient_norm_score,
    loss_score,
    min_k_plus_score,
    min_k_score,
    reference_score,
    zlib_score,
)
from rayunlearn.metrics.multiple_choice import (
    letter_answered,
    letter_choice,
    letter_written,
    letter_written_answered,
    multiple_choice,
    multiple_choice_few_shot,
    multiple_choice_sum,
    option_chance,
)
from rayunlearn.metrics.patching import unlearning_depth
from rayunlearn.metrics.text import (
    knowledge_memorization,
    leak_at_k,
    ngram_entropy,
    repetition,
    rouge_l_f1,
    rouge_l_recall,
    syntactic_sanity,
    verbatim_memorization,
)
from rayunlearn.ranges import FamilyRow


@dataclass(frozen=True)
class MetricInput:
    """What a metric may ask for, and which pass over the probes gives it."""

    source: str
    meaning: str


INPUTS = {
    "token_nll": MetricInput(
        "scores",
        "(n,) float32, nats: NLL of the answer's tokens, teacher forced, what closes it last",
    ),
    "n_end": MetricInput(
        "ends",
        "how many of the last tokens close the answer: the end token, a chat template's end of"
        " turn; 0 where the tokenizer has none",
    ),
    "correct": MetricInput("scores", "(n,) bool: the greedy choice is the label"),
    "option_nll": MetricInput(
        "options",
        "(k,) float32, nats: mean-token NLL of the answer options, the true one first (its"
        " paraphrase where there is one)",
    ),
    "option_nll_sum": MetricInput("options", "(k,) float32, nats: summed NLL of the same options"),
    "key_nll": MetricInput(
        "scores", "(m,) float32, nats: `token_nll` of the tokens that hold the answer's key"
    ),
    "key_ranks": MetricInput(
        "scores", "(m,) long: 1 + number of tokens with a higher logit, for the same tokens"
    ),
    "wrong_key_nll": MetricInput(
        "options",
        "(k - 1,) float32, nats: summed NLL of what stands in each wrong answer where the answer"
        " has its key",
    ),
    "completion_nll": MetricInput(
        "completions", "(m,) float32, nats: NLL of the key's tokens after `completion_prompt`"
    ),
    "completion_ranks": MetricInput("completions", "(m,) long: ranks of the same tokens"),
    "few_shot_nll": MetricInput(
        "few-shot answers",
        "(n,) float32, nats: `token_nll` after solved questions of the same split",
    ),
    "few_shot_option_nll": MetricInput(
        "few-shot options", "(k,) float32, nats: `option_nll` after the same questions"
    ),
    "paraphrase_correct": MetricInput(
        "paraphrases", "(n,) bool: `correct` after the question in other words"
    ),
    "log_prob_mean": MetricInput(
        "moments",
        "(n,) float32, nats: mean of log p under the next-token distribution, at each answer token",
    ),
    "log_prob_deviation": MetricInput(
        "moments", "(n,) float32, nats: its standard deviation, at least 0.001"
    ),
    "base_nll": MetricInput("base", "(n,) float32, nats: `token_nll` of the base model"),
    "kl": MetricInput(
        "base", "(n,) float32, nats: KL(base || model) of the next-token distributions"
    ),
    "answer": MetricInput("words", "the answer as text"),
    "truth": MetricInput(
        "words",
        "the text that a continuation should be: the answer, or the second half of a document"
        " without a question",
    ),
    "generated": MetricInput(
        "greedy", "the greedy continuation of the prompt, to its end (of turn) or the limit"
    ),
    "continuation": MetricInput("greedy", "its first tokens, as many as `truth` has"),
    "samples": MetricInput("samples", "continuations drawn from the model"),
    "letter_logits": MetricInput(
        "letters",
        "(k,) float32: logits of the option letters after 'Answer:' (log p where a letter is"
        " several tokens)",
    ),
    "letter_text": MetricInput("written letters", "the token written greedily after 'Answer:'"),
    "true_letter": MetricInput(
        "letter places", "position of the true option among the letters, from 0"
    ),
    "n_options": MetricInput("letter places", "number of options"),
    "verdict_probabilities": MetricInput(
        "judge",
        "(4,) float32: what the chat model of `judge.answers` gives to each verdict on `generated`:"
        " same fact, refused, gibberish, wrong",
    ),
    "gradient_norm": MetricInput(
        "gradients",
        "mean over parameter tensors of the L2 norm of the gradient of the mean token NLL",
    ),
    "gold_gap": MetricInput(
        "patching",
        "(L,) float32, nats: log p of the key's tokens that base loses with gold's states at a"
        " block's output, mean over the tokens",
    ),
    "own_gap": MetricInput(
        "patching", "(L,) float32, nats: the same with the states of the model that is measured"
    ),
}


# passes that need another model beside the one that is measured
COMPARING_SOURCES = frozenset({"base", "patching"})


@dataclass(frozen=True)
class Metric(FamilyRow[float | None]):
    """A row of the family: function, unit, range and which way is more knowledge ('' where neither
    is). `chance`: the metric whose value on base is, document by document, what a model that cannot
    know would score; '' where that is not known.
    """

    unit: str
    low: float
    high: float
    direction: str
    chance: str = ""

    @property
    def compares(self) -> bool:
        """Whether the value says how the model differs from base or gold, which for these two
        themselves is known beforehand.
        """
        return bool(COMPARING_SOURCES & self._sources)

    @property
    def needs_gold(self) -> bool:
        """Whether it cannot be measured without a gold model."""
        return "patching" in self._sources

    @property
    def _sources(self) -> frozenset[str]:
        """The passes that its inputs come from; none of a metric of the whole corpus."""
        return frozenset(INPUTS[name].source for name in self.inputs if name in INPUTS)


METRICS = {
    row.function.__name__: row
    for row in (
        Metric(
            probability,
            "probability of the answer (geometric mean over tokens)",
            "TOFU 2401.06121",
            "fraction",
            0,
            1,
            "higher",
            "wrong_option_probability",
        ),
        Metric(
            multiple_choice,
            "true option is the most likely one",
            "ours; acc_norm of lm-evaluation-harness, per token and not per byte, ends counted",
            "fraction",
            0,
            1,
            "higher",
            "option_chance",
        ),
        Metric(
            exact_memorization,
            "tokens right under teacher forcing",
            "Tirumala et al. 2205.10770",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            extraction_strength,
            "share of the answer that a prefix extracts",
            "Carlini et al. 2021; 2406.09179",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(perplexity, "exp of the mean token NLL", "standard", "1", 1, math.inf, "lower"),
        Metric(
            sequence_probability,
            "probability of the whole answer",
            "standard",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            option_probability,
            "share of the true option in the options' probabilities",
            "TOFU 2401.06121",
            "fraction",
            0,
            1,
            "higher",
            "option_chance",
        ),
        Metric(
            extraction_strength_paraphrase,
            "extraction strength after the paraphrased question",
            "2406.09179",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            wrong_option_probability,
            "probability of a wrong option, mean over them: chance level of `probability`",
            "ours",
            "fraction",
            0,
            1,
            "",
        ),
        Metric(
            option_chance,
            "1 / number of options: chance level of a choice among them",
            "standard",
            "fraction",
            0,
            1,
            "",
        ),
        Metric(
            truth_ratio,
            "probability of wrong options / of the true one",
            "TOFU 2401.06121",
            "1",
            0,
            math.inf,
            "lower",
        ),
        Metric(
            truth_ratio_arithmetic,
            "the same, wrong options averaged arithmetically",
            "TOFU 2401.06121, eq. 1",
            "1",
            0,
            math.inf,
            "lower",
        ),
        Metric(
            truth_ratio_even,
            "min(R, 1/R): truth and falsehood cannot be distinguished",
            "TOFU 2401.06121",
            "fraction",
            0,
            1,
            "lower",
        ),
        Metric(
            truth_ratio_right,
            "max(0, 1 - R): the truth alone is likely",
            "TOFU 2401.06121",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            base_kl,
            "distance of the answer's distributions from base",
            "standard",
            "nats",
            0,
            math.inf,
            "lower",
        ),
        Metric(
            multiple_choice_sum,
            "true option is the most likely whole text",
            "acc of lm-evaluation-harness where the options are texts, ends counted",
            "fraction",
            0,
            1,
            "higher",
            "option_chance",
        ),
        Metric(
            key_probability,
            "probability of the answer's key after the words before it",
            "as LAMA 1909.01066 and CounterFact 2202.05262",
            "fraction",
            0,
            1,
            "higher",
            "wrong_key_probability",
        ),
        Metric(
            key_rank,
            "rank of the key among all tokens, the worst of its tokens",
            "LAMA 1909.01066",
            "1",
            1,
            math.inf,
            "lower",
        ),
        Metric(
            key_multiple_choice,
            "the key is likelier than what wrong answers have in its place",
            "ours",
            "fraction",
            0,
            1,
            "higher",
            "key_chance",
        ),
        Metric(
            wrong_key_probability,
            "probability of a wrong key, mean over them: chance level of `key_probability`",
            "ours",
            "fraction",
            0,
            1,
            "",
        ),
        Metric(
            key_chance,
            "1 / number of keys to choose from: chance level of that choice",
            "standard",
            "fraction",
            0,
            1,
            "",
        ),
        Metric(
            completion_probability,
            "probability of the key after a text without question and template",
            "CounterFact 2202.05262",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            completion_rank,
            "rank of the key there",
            "LAMA 1909.01066",
            "1",
            1,
            math.inf,
            "lower",
        ),
        Metric(
            probability_few_shot,
            "probability of the answer after solved questions",
            "TOFU 2401.06121; Brown et al. 2005.14165",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            multiple_choice_few_shot,
            "true option is the most likely one after solved questions",
            "Brown et al. 2005.14165",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            letter_choice,
            "true option's letter has the highest logit",
            "MMLU 2009.03300; WMDP 2403.03218",
            "fraction",
            0,
            1,
            "higher",
            "option_chance",
        ),
        Metric(
            letter_written,
            "the letter written is the true one",
            "Doshi & Stickland 2411.12103",
            "fraction",
            0,
            1,
            "higher",
            "option_chance",
        ),
        Metric(
            letter_written_answered,
            "the same, where a letter was written",
            "Doshi & Stickland 2411.12103",
            "fraction",
            0,
            1,
            "higher",
            "option_chance",
        ),
        Metric(
            letter_answered,
            "a letter was written at all",
            "Doshi & Stickland 2411.12103",
            "fraction",
            0,
            1,
            "",
        ),
        Metric(
            loss_score,
            "membership: mean token NLL",
            "Yeom et al. 1709.01604",
            "nats",
            0,
            math.inf,
            "lower",
        ),
        Metric(
            zlib_score,
            "membership: NLL per compressed byte",
            "Carlini et al. 2012.07805",
            "nats per byte",
            0,
            math.inf,
            "lower",
        ),
        Metric(
            reference_score,
            "membership: NLL above the reference model's",
            "Carlini et al. 2012.07805",
            "nats",
            -math.inf,
            math.inf,
            "lower",
        ),
        Metric(
            min_k_score,
            "membership: mean NLL of the least likely tokens",
            "Shi et al. 2310.16789",
            "nats",
            0,
            math.inf,
            "lower",
        ),
        Metric(
            min_k_plus_score,
            "membership: the same, normalised per position",
            "Zhang et al. 2404.02936",
            "1",
            -math.inf,
            math.inf,
            "lower",
        ),
        Metric(
            gradient_norm_score,
            "membership: gradient norm of the loss",
            "as in open-unlearning",
            "nats per weight",
            0,
            math.inf,
            "lower",
        ),
        Metric(
            rouge_l_recall,
            "words of the truth in the greedy text, in order",
            "Lin 2004; TOFU 2401.06121",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            rouge_l_f1, "the same, longer texts penalised", "Lin 2004", "fraction", 0, 1, "higher"
        ),
        Metric(
            verbatim_memorization,
            "overlap of the continuation with the true one",
            "MUSE 2407.06460",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            knowledge_memorization,
            "overlap of a short answer with the true one",
            "MUSE 2407.06460",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            leak_at_k,
            "overlap of the best of k samples with the truth",
            "2511.04934",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(
            repetition,
            "share of repeated 4-grams in the greedy text",
            "Welleck et al. 1908.04319",
            "fraction",
            0,
            1,
            "",
        ),
        Metric(
            ngram_entropy,
            "entropy of the greedy text's 2- and 3-grams",
            "Meng et al. 2202.05262; RWKU 2406.10890",
            "bits",
            0,
            math.inf,
            "",
        ),
        Metric(
            syntactic_sanity, "signs of language in the greedy text", "ours", "fraction", 0, 1, ""
        ),
        Metric(
            judged_same_fact,
            "a chat model says that the greedy text states the fact",
            "ours",
            "fraction",
            0,
            1,
            "higher",
        ),
        Metric(judged_refused, "a chat model says that it refuses", "ours", "fraction", 0, 1, ""),
        Metric(
            judged_gibberish, "a chat model says that it is no text", "ours", "fraction", 0, 1, ""
        ),
        Metric(
            judged_wrong,
            "a chat model says that it states something else",
            "ours",
            "fraction",
            0,
            1,
            "",
        ),
        Metric(
            unlearning_depth,
            "share of what gold's hidden states lack that the model's lack too",
            "UDS 2605.24614",
            "fraction",
            0,
            1,
            "lower",
        ),
    )
}


def sources_of(metrics: Iterable[Metric]) -> frozenset[str]:
    """The passes over the probes that these metrics need."""
    return frozenset(INPUTS[name].source for metric in metrics for name in metric.inputs)


# read off the texts themselves and one forward pass over answers, options, paraphrased questions
# and plain completions
CHEAP_SOURCES = frozenset({"ends", "scores", "options", "paraphrases", "completions"})

# metrics that need a judge: `judge.answers` names it, so `all` does not mean them
JUDGED = {name: row for name, row in METRICS.items() if "judge" in sources_of([row])}

# metrics that say what chance is; of an unlearned model they say nothing
CHANCE_LEVELS = frozenset(row.chance for row in METRICS.values() if row.chance)

CHEAP = {
    name: row
    for name, row in METRICS.items()
    if sources_of([row]) <= CHEAP_SOURCES and not name.endswith("_score")
}

# What a recovery curve may be of: a look at it comes after every step of an attack that trains.
CURVE_METRICS = CHEAP | {"letter_choice": METRICS["letter_choice"]}
