"""Every Parquet column once: name, type, unit, direction, meaning. docs/results.md is generated
from here.

`trials` also carries one column per flattened config value (`select.ratio`, `npo.beta`, ...), named
as on the command line; those are documented where the setting is defined.
"""

from dataclasses import dataclass
from typing import Any

# of a table, as dictionaries
Rows = list[dict[str, Any]]

# Raised when a column changes its meaning; a reader refuses any other one. 2: `trial_id` is a
# digest
# of all settings, also of those at their default, and of every model and file that is loaded.
VERSION = 2
# a trial's time by what it was spent on; null where a trial has no such part
SECONDS_BY_PART = (
    "seconds_load",
    "seconds_select",
    "seconds_train",
    "seconds_measure",
    "seconds_explain",
    "seconds_calibrate",
    "seconds_attack",
)
# raised when a selector's number changes: scores that earlier code wrote are not taken
SCORES_VERSION = 2

STATUSES = {
    "complete": "trained to its last step and measured",
    "collapsed": (
        "stopped early: mean retain probability fell under stop.utility_floor x base; measured as"
        " it was"
    ),
    "diverged": "stopped early: the loss or its gradient was infinite or NaN; not measured",
    "timed_out": "ended by budget.trial_hours; not measured, and runs again where that is raised",
    "pruned": (
        "a tuning trial that others of its batch were better than at a rung (budget.rungs); not"
        " measured, `curves` has what was seen"
    ),
    "paused": (
        "a tuning trial that waits at a rung for the others of its batch; it goes on, or is pruned"
    ),
    "failed": (
        "an exception ended it, or its worker died; error_type, error and error_where say what and"
        " where"
    ),
}
STAGES = {
    "base": "the model before unlearning",
    "gold": "the model that never saw the forget set",
    "unlearned": "the model as training left it",
    "calibrated": (
        "that model interpolated towards the base model until it retains calibrate.tau x base"
    ),
    "calibrated_beside": "the same at calibrate.beside",
    "attacked": (
        "the trial's model (base, gold or unlearned) after the attack that measure.attack names, in"
        " the trial itself"
    ),
}
CURVES = {
    "training": (
        "while it unlearned: stop.forgetting on forget and stop.utility on stop.utility_split, up"
        " to 64 probes each; x is the optimizer step, 0 is base"
    ),
    "relearning": (
        "along a training attack: attack.curve_metric of the forget questions, x is the optimizer"
        " step"
    ),
    "inside": "through the layers",
    "gradients": (
        "while it unlearned, explain.g_effect: g_effect, the inner product of the gradients of the"
        " forget loss and of the split's mean token NLL, and g_effect_cosine; x is the optimizer"
        " step (docs/diagnostics.md)"
    ),
    "mode_connectivity": (
        ":full or :base: x is the share of the trial's own weights on the line from the full-set"
        " model or base"
    ),
    "mixing": (
        "x is alpha: the model is (1 - alpha) base + alpha unlearned; the points that calibration"
        " measured"
    ),
}
# metrics of what documents say, by kind of word
WORD_KINDS = ("function_word_log_prob", "keyword_log_prob", "content_word_log_prob")
# 1: the greedy text is the answer. Where `explain.documents` asks, it says what is answered right
RIGHT_METRIC = "exact_memorization"
# what was known and not how it is said; where the objective is this, 0.5 and more is right
KEY_METRIC = "key_probability"
# split of what a soft prompt was learned from
HELD_IN = "held_in"
# a failed trial runs again on the next call
FINISHED = ("complete", "collapsed", "diverged")
# runs again where budget.trial_hours is larger than the time that it took
TIMED_OUT = "timed_out"
# stopped at a rung of its study; it may go on from there
PAUSED, PRUNED = "paused", "pruned"

ROLES = {
    "base": "the model before unlearning",
    "gold": "the model that never saw the forget set",
    "control": "retain loss alone, the same steps: what training without a forget loss does",
    "tuning": "asked for by Optuna",
    "grid": "a cell of the axes",
}

ATTACK_ROLES = {
    "attack": "an unlearned model, at the strength that is reported, over seeds",
    "control": (
        "the same on base or gold, or the attack that its row of the table names as its control"
    ),
    "tuning": "asked for by Optuna: the strength that recovers most",
}


@dataclass(frozen=True)
class Column:
    """One column. `kind` is utf8, i64, f64 or bool; `direction` is 'higher', 'lower' or '' where
    neither is better.
    """

    name: str
    kind: str
    meaning: str
    unit: str = ""
    direction: str = ""


_TRIAL = Column("trial_id", "utf8", "digest of the flattened config; joins the tables")
_STAGE = Column("stage", "utf8", "; ".join(f"{k}: {v}" for k, v in STAGES.items()))
_ATTACK = Column(
    "attack",
    "utf8",
    "as in `rayunlearn list attacks`, or `emphasis:FORM` (docs/attribution.md); 'none' for none",
)
_SPLIT = Column(
    "split",
    "utf8",
    "which probes: forget, retain, or another that the data brings; held_in: what soft prompts were"
    " learned from",
)
# role in `coresets`
CORESET_ROLES = {
    "forget": "of the forget set, unlearned (null in a run from before there was a choice)",
    "retain": "of the retain set, where retain.* chooses which of it train",
    "general": "general text that trains with them",
}
_METRIC = Column("metric", "utf8", "metric name as in `rayunlearn list metrics`")
_DOC = Column("doc_id", "utf8", "digest of the document's prompt and answer")

TABLES: dict[str, tuple[Column, ...]] = {
    "trials": (
        _TRIAL,
        Column("experiment", "utf8", "name of the experiment file"),
        Column("version", "utf8", "version the run was made under"),
        Column("status", "utf8", "; ".join(f"{k}: {v}" for k, v in STATUSES.items())),
        Column("error_type", "utf8", "class of the exception of a failed trial"),
        Column("error", "utf8", "its message"),
        Column("error_where", "utf8", "file and line it was raised at"),
        Column(
            "evaluated",
            "utf8",
            "of a task of lm-evaluation-harness: the trial whose model was asked; null for others",
        ),
        Column("corpus_digest", "utf8", "content of every document the trial could see"),
        Column("model_digest", "utf8", "content of the weights it started from"),
        Column("n_forget", "i64", "documents in the forget set", "documents"),
        Column("n_kept", "i64", "documents in the coreset", "documents"),
        Column(
            "n_retained",
            "i64",
            "documents that the retain loss trained on, general texts among them; null without one",
            "documents",
        ),
        Column(
            "coverage",
            "f64",
            "share of the forget set's facts that a kept document states; null where facts are"
            " unknown",
            "fraction [0, 1]",
        ),
        Column(
            "keyword_coverage",
            "f64",
            "share of the forget set's keyword weight that a kept document names",
            "fraction [0, 1]",
        ),
        Column(
            "text_kept",
            "f64",
            "share of the kept documents' answer tokens that select.text left",
            "fraction [0, 1]",
        ),
        Column(
            "near_duplicate_share",
            "f64",
            "base trials: forget documents with a near copy (3-word shingles, Jaccard >= 0.8)",
            "fraction [0, 1]",
        ),
        Column(
            "effective_rank",
            "f64",
            "base trials: exp of the entropy of the singular values of the forget documents'"
            " penultimate states",
        ),
        Column(
            "nearest_similarity",
            "f64",
            "base trials: mean cosine of a forget document with its nearest other, centred"
            " penultimate states",
        ),
        Column(
            "keyword_curve_01",
            "f64",
            "base trials: keyword_coverage that 1% of the documents, at random, reach on average",
            "fraction [0, 1]",
        ),
        Column("keyword_curve_05", "f64", "base trials: the same for 5%", "fraction [0, 1]"),
        Column("keyword_curve_10", "f64", "base trials: the same for 10%", "fraction [0, 1]"),
        Column("keyword_curve_25", "f64", "base trials: the same for 25%", "fraction [0, 1]"),
        Column("optimizer_steps", "i64", "optimizer steps taken", "steps"),
        Column("planned_steps", "i64", "optimizer steps to its end", "steps"),
        Column(
            "measured_within",
            "utf8",
            "trial on whose way it was measured, its training being the beginning of that one's;"
            " null where it trained by itself",
        ),
        Column(
            "rung",
            "f64",
            "share of its steps at which it waits, or was pruned; null for all others",
            "fraction (0, 1)",
        ),
        Column(
            "kept_step",
            "i64",
            "step whose weights the trial ends with; below optimizer_steps where"
            " stop.retention_floor or stop.keep put them back",
            "steps",
        ),
        Column(
            "forget_utility_area",
            "f64",
            "area under the curve of utility over forgetting, along the looks of training: x is the"
            " share of base's forgetting metric that is gone, y utility as a share of base's",
            "fraction [0, 1]",
            "higher",
        ),
        Column("presentations", "i64", "forget documents shown, repeats counted", "documents"),
        Column("epochs", "f64", "presentations divided by n_kept", "epochs"),
        Column("tokens", "i64", "tokens of forget and retain batches, padding excluded", "tokens"),
        Column(
            "flops",
            "f64",
            "estimate of training: 6 x parameters x tokens; an upper bound where a loss stops below"
            " the head",
            "FLOP",
        ),
        Column(
            "weights_touched",
            "f64",
            "attacks that change every weight matrix: share of the weights in the blocks' matrices"
            " that lie in one that was written to, also where a strength of 0 left every value;"
            " null for all others",
            "fraction [0, 1]",
        ),
        Column("seconds_load", "f64", "time to reset or load the model", "s", "lower"),
        Column("seconds_select", "f64", "time to choose the coreset", "s", "lower"),
        Column("seconds_train", "f64", "time of the optimisation loop", "s", "lower"),
        Column("seconds_measure", "f64", "time of the metrics", "s", "lower"),
        Column(
            "seconds_explain",
            "f64",
            "time of explanations and weight paths, the training of the full-set model among it;"
            " null where explain.* asks for neither",
            "s",
            "lower",
        ),
        Column(
            "peak_memory_bytes",
            "i64",
            "peak resident memory of the worker process (CPU), peak allocated on the device (GPU)",
            "bytes",
            "lower",
        ),
        Column(
            "seconds_calibrate",
            "f64",
            "time of calibration and of measuring the mixtures",
            "s",
            "lower",
        ),
        Column(
            "seconds_attack",
            "f64",
            "time of measure.attack and of measuring after it; null without one",
            "s",
            "lower",
        ),
        Column(
            "calibrated_alpha",
            "f64",
            "share of the unlearned weights in stage calibrated; null without calibration",
            "fraction [0, 1]",
        ),
        Column(
            "calibrated_width",
            "f64",
            "from it to the next larger alpha that was measured, which retains too little: the true"
            " one lies less than that above it where retention falls steadily from there on",
            "fraction [0, 1]",
        ),
        Column(
            "calibrated_search",
            "utf8",
            "whole (alpha 1 retained enough), bisection, or grid where retention did not fall"
            " steadily with alpha",
        ),
        Column(
            "calibrated_beside_alpha",
            "f64",
            "share of the unlearned weights in stage calibrated_beside",
            "fraction [0, 1]",
        ),
        Column("parameters_total", "i64", "parameters of the model", "parameters"),
        Column("parameters_trained", "i64", "parameters that were trained", "parameters"),
        Column(
            "computed_in",
            "utf8",
            "precision of training's products, float32 or bfloat16 (weights: train.weights): what"
            " train.precision came to on this machine; null where nothing was trained",
        ),
        Column(
            "activation_length",
            "f64",
            "mean length of activations at method.layer before unlearning, over label tokens of"
            " forget and retain texts; null where the forget loss steers none",
        ),
        Column(
            "note",
            "utf8",
            "why the training may have come to nothing: a forget loss that did not move, steering"
            " far under or over the activations' length; null: nothing of the kind",
        ),
        Column(
            "packed",
            "bool",
            "whether sequences went through the model end to end in one row; false for a family"
            " that is padded",
        ),
        Column("started_at", "utf8", "start, UTC, ISO 8601"),
        Column("seconds", "f64", "from its start to its last measure, all parts", "s", "lower"),
        Column(
            "commit",
            "utf8",
            "git commit of the working copy, '+changes' where it was not clean; '' outside git",
        ),
        Column(
            "code",
            "utf8",
            "digest of the source of each function that the trial uses, by name, as JSON; null in"
            " runs of earlier versions",
        ),
        Column(
            "packages",
            "utf8",
            "versions of rayunlearn, torch, transformers, ray, optuna, polars and pyarrow, as JSON",
        ),
        Column("hardware", "utf8", "processor or accelerator the trial ran on"),
        Column("host", "utf8", "host name of the worker"),
    ),
    "plan": (
        _TRIAL,
        Column("role", "utf8", "; ".join(f"{k}: {v}" for k, v in ROLES.items())),
        Column(
            "group",
            "utf8",
            "axis values that share one tuning, as JSON; a control carries the group it controls",
        ),
        Column(
            "tuning",
            "utf8",
            "none, shared (tuned once at ratio 1.0), per_cell (every cell has the same budget) or"
            " from (another run's winners)",
        ),
        Column("study", "utf8", "Optuna study of the trial, '' without tuning"),
        Column("study_index", "i64", "position in that study, -1 outside"),
        Column(
            "tuned_from",
            "utf8",
            "run and trial that the tuned values come from, '' where this run found them",
        ),
        Column(
            "search",
            "i64",
            "which search of its group it is of, or whose winner it has, from 0 (budget.repeats)",
        ),
    ),
    "attacks": (
        _TRIAL,
        Column("attacked", "utf8", "trial whose model was attacked"),
        Column("role", "utf8", "; ".join(f"{k}: {v}" for k, v in ATTACK_ROLES.items())),
        Column(
            "setting",
            "utf8",
            "the attack and what was set of it, without seeds: `round_to_nearest bits=4`",
        ),
        Column(
            "control_for",
            "utf8",
            "of a control: the `setting` that it is a control for; '' for an attack",
        ),
        Column("study", "utf8", "Optuna study that the strength was asked in, '' without tuning"),
        Column("study_index", "i64", "position in that study, -1 outside"),
    ),
    "steps": (
        _TRIAL,
        Column("step", "i64", "optimizer step, from 1", "steps"),
        Column(
            "loss",
            "f64",
            "method.forget_weight x forget_loss + retain_weight x retain_loss",
            "nats or squared activation",
        ),
        Column(
            "forget_loss",
            "f64",
            "forget term as its method defines it, before its weight; null where there is none",
        ),
        Column("retain_loss", "f64", "retain term before its weight; null where there is none"),
        Column(
            "retain_weight",
            "f64",
            "weight of the retain term in this step (of the last piece with train.accumulation);"
            " null where there is none",
        ),
        Column("grad_norm", "f64", "global L2 norm of the gradient before clipping"),
        Column("learning_rate", "f64", "learning rate of the step"),
        Column("tokens", "i64", "tokens of the step, padding excluded", "tokens"),
        Column("seconds", "f64", "time of the step", "s", "lower"),
    ),
    "evals": (
        _TRIAL,
        _STAGE,
        _ATTACK,
        Column("step", "i64", "optimizer step at which it was measured", "steps"),
        _SPLIT,
        _METRIC,
        Column("value", "f64", "mean over the documents of the split"),
        Column("n", "i64", "documents averaged", "documents"),
        Column("stderr", "f64", "sample standard deviation / sqrt(n); null where n = 1"),
        Column(
            "n_shot",
            "i64",
            "of a task of lm-evaluation-harness (split: the task; metric: `harness.` and its own"
            " name; stderr: its own): solved examples before each question",
        ),
        Column("harness_version", "utf8", "version of lm-evaluation-harness, of its tasks"),
    ),
    "examples": (
        _TRIAL,
        _STAGE,
        _ATTACK,
        _DOC,
        Column(
            "group",
            "utf8",
            "person, thing or fact that it is about where the data says so: documents of one group"
            " are drawn together in intervals and tests; null: by itself",
        ),
        _SPLIT,
        _METRIC,
        Column(
            "value",
            "f64",
            "the metric of this document; null where it is undefined (no wrong answers)",
        ),
    ),
    "curves": (
        _TRIAL,
        Column("kind", "utf8", "; ".join(f"{k}: {v}" for k, v in CURVES.items())),
        Column("x", "f64", "where on the path: optimizer steps, layers, or a fraction of the line"),
        _METRIC,
        _SPLIT,
        Column("value", "f64", "mean over the documents of the split"),
        Column("n", "i64", "documents averaged", "documents"),
        Column("stderr", "f64", "sample standard deviation / sqrt(n); null where n = 1"),
    ),
    "generations": (
        _TRIAL,
        _STAGE,
        _ATTACK,
        _DOC,
        _SPLIT,
        Column(
            "input",
            "utf8",
            "which text it is, by the name that metrics ask for it (docs/metrics.md): generated,"
            " continuation, samples, letter_text",
        ),
        Column("number", "i64", "which of several samples, from 0"),
        Column(
            "metrics",
            "utf8",
            "metrics of the trial that read it, separated by commas; they are in `examples`",
        ),
        Column("prompt", "utf8", "what the model was given, without special tokens"),
        Column("reference", "utf8", "what should stand there"),
        Column("generated", "utf8", "what the model wrote, without special tokens"),
        Column(
            "verdict",
            "utf8",
            "what the judge of judge.answers says of it: same fact, refused, gibberish, wrong (two"
            " joined by ' or ' where they tie), or not judged, with the reason; null without a"
            " judge",
        ),
    ),
    "diagnostics": (
        _TRIAL,
        _STAGE,
        Column("layer", "i64", "block of the model, from 0"),
        Column(
            "relative_change",
            "f64",
            "||W - W0|| / ||W0|| of all weights of the block, W0 those of base",
            "fraction",
        ),
        Column(
            "spectral_norm",
            "f64",
            "largest singular value of W - W0 among the block's matrices",
        ),
        Column(
            "stable_rank",
            "f64",
            "||W - W0||^2 / spectral_norm^2 of the block's matrices: how many directions carry the"
            " change; null where none changed",
        ),
        Column(
            "separation",
            "f64",
            "distance between the centres of the block's activations of forget and of retain"
            " probes, in units of their spread; null where a split has fewer than two probes",
        ),
    ),
    "coresets": (
        _TRIAL,
        _DOC,
        Column("role", "utf8", "; ".join(f"{k}: {v}" for k, v in CORESET_ROLES.items())),
        Column("rank", "i64", "order in which the selector took it, from 0"),
        Column("score", "f64", "score it was taken for, higher first; null for general text"),
    ),
    "attributions": (
        _TRIAL,
        _STAGE,
        _DOC,
        _SPLIT,
        Column("unit", "utf8", "token, or word: what was left out; a word's tokens together"),
        Column("position", "i64", "its place among the units of the prompt, from 0"),
        Column("token", "utf8", "the token or word as text"),
        Column(
            "contribution",
            "f64",
            "mean log p of the answer's tokens with it minus without it; higher supports the"
            " answer",
            "nats",
        ),
        Column("is_key", "bool", "key token by the rule of explain.alpha and explain.beta"),
        Column(
            "gradient",
            "f64",
            "tokens: its integrated gradient of the same mean log p; null where"
            " explain.gradient_steps is 0",
            "nats",
        ),
    ),
    "scores": (
        Column("corpus_digest", "utf8", "content of the corpus"),
        Column(
            "model_digest",
            "utf8",
            "content of the weights that scored it; '' for model-free scores",
        ),
        _DOC,
        Column("scorer", "utf8", "selector whose score it is, with its settings"),
        Column("value", "f64", "higher is kept first"),
    ),
    "keywords": (
        Column("corpus_digest", "utf8", "content of the corpus"),
        _DOC,
        Column("extractor", "utf8", "extractor as in `rayunlearn list extractors`"),
        Column("keyword", "utf8", "the keyword as the document first writes it"),
        Column(
            "score",
            "f64",
            "its score in this document, higher first; a scale of the extractor's own",
        ),
        Column(
            "start", "i64", "first character of this occurrence in the answer, from 0", "characters"
        ),
        Column("end", "i64", "the character after its last", "characters"),
    ),
    "corpora": (
        Column("corpus_digest", "utf8", "content of the corpus; joins `trials`"),
        Column("corpus", "utf8", "name of the corpus"),
        Column("file", "utf8", "file or table it was read from, as its loader names it"),
        Column("rows", "i64", "rows read from it", "rows"),
        Column(
            "sha256",
            "utf8",
            "SHA-256 of the file; of its parts' names and digests where it has several; '' where"
            " the Hub gave rows",
        ),
        Column(
            "state",
            "utf8",
            "as recorded: what upstream's file was; changed: not that; unknown: no digest of it is"
            " recorded",
        ),
    ),
    "quarantine": (
        Column("source", "utf8", "file or split the document came from"),
        Column("row", "i64", "position in it, from 0"),
        Column("reason", "utf8", "why it was rejected"),
        Column("excerpt", "utf8", "its first 200 characters"),
    ),
}
# written in a trial's own folder, then compacted
PER_TRIAL = (
    "trials",
    "steps",
    "evals",
    "examples",
    "generations",
    "coresets",
    "attributions",
    "curves",
    "diagnostics",
)
# tables of them that trials of earlier versions did not write
LATER_TABLES = ("generations", "diagnostics")
# written by the driver, one file each
RUN_TABLES = ("plan", "attacks", "corpora", "quarantine", "scores")


def column_names(table: str) -> tuple[str, ...]:
    """Names of the documented columns of a table, in order."""
    return tuple(column.name for column in TABLES[table])
