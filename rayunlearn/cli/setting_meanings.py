"""What each setting of a trial means and which values it takes, for docs/settings.md and
`rayunlearn list settings`.

Choices are the tuples that `config` checks against. Ranges are words: `>= 1`, `(0, 1]`;
tests/test_docs.py tries their bounds.
"""

from dataclasses import dataclass

from rayunlearn import config


@dataclass(frozen=True)
class Meaning:
    """What a setting means, and its allowed values: a choice, a range in words, or what it names
    ('' is none or any text).
    """

    words: str
    allowed: str | tuple[str, ...] = ""

    @property
    def allowed_words(self) -> str:
        """The allowed values as a table's cell."""
        return self.allowed if isinstance(self.allowed, str) else ", ".join(self.allowed)


DATASETS = (*config.SYNTHETIC_DATASETS, *config.BENCHMARKS, "files")
BOOLEAN = ("true", "false")
MODEL = "folder or Hub name"

MEANINGS = {
    "data.name": Meaning("the dataset", DATASETS),
    "data.size": Meaning("size of a synthetic dataset", config.SIZES),
    "data.redundancy": Meaning("documents that state each fact of a synthetic dataset", ">= 1"),
    "data.seed": Meaning("draws the synthetic dataset"),
    "data.path": Meaning("where a benchmark or your files are", "folder, file or Hub name"),
    "data.forget": Meaning("your forget set", "file stem in data.path"),
    "data.retain": Meaning("your retain set", "file stem in data.path"),
    "data.probe_forget": Meaning(
        "what is asked about the forget set", "file stem; '': the set itself"
    ),
    "data.probe_retain": Meaning(
        "what is asked about the retain set", "file stem; '': the set itself"
    ),
    "data.holdout": Meaning("documents like the forget set's that no training saw", "file stem"),
    "data.columns": Meaning("our names to your columns", "prompt=question,answer=answer"),
    "data.options": Meaning("settings of a benchmark's loader", "NAME=VALUE,..."),
    "data.limit_retain": Meaning("retain documents at most", ">= 1"),
    "data.template": Meaning("layout of a question", "text with {prompt}, or chat"),
    "data.max_tokens": Meaning("tokens of a text at most; the rest is cut", ">= 8"),
    "data.probes": Meaning("further sets that are asked and never trained on", "NAME=FILE,..."),
    "data.arithmetic": Meaning(
        "arithmetic questions that are asked besides", f"[0, {config.MOST_ARITHMETIC}]"
    ),
    "data.linked": Meaning("second names and links of a synthetic dataset's entities", BOOLEAN),
    "data.private": Meaning("no page and no evaluation shows a text of the corpus", BOOLEAN),
    "model.name": Meaning("the model", f"scratch (built here), {MODEL}"),
    "model.size": Meaning("size of a model built here", config.SIZES),
    "model.teach": Meaning("train base and gold on the corpus first", BOOLEAN),
    "model.teach_epochs": Meaning("epochs of that training; 0: what fits the model", ">= 0"),
    "model.teach_learning_rate": Meaning("its peak rate; 0: what fits the model", ">= 0"),
    "model.teach_batch_size": Meaning("documents of its steps; 0: what fits the model", ">= 0"),
    "model.teach_precision": Meaning("precision of its products", config.TEACH_PRECISIONS),
    "model.gold": Meaning("a model that never saw the forget set", MODEL),
    "model.unlearned": Meaning("a model that was unlearned elsewhere", MODEL),
    "model.seed": Meaning("draws the weights of a model built here"),
    "select.name": Meaning("what chooses the coreset", "see `rayunlearn list selectors`"),
    "select.ratio": Meaning("share of the forget set that is unlearned", "(0, 1]"),
    "select.seed": Meaning("of the selector and of random words"),
    "select.stratified": Meaning("topics share the coreset out in proportion", BOOLEAN),
    "select.text": Meaning(
        "in which words documents are unlearned; the last three are controls",
        (*config.TEXTS, *config.SUBSTITUTES),
    ),
    "select.extractor": Meaning("what finds keywords", "see `rayunlearn list extractors`"),
    "select.keyword_fraction": Meaning(
        "share of a document's words that are its keywords", "(0, 1]"
    ),
    "select.judge_model": Meaning("chat model of the extractor judge", MODEL),
    "select.other_split": Meaning(
        "where the control other_documents takes its documents", "a split"
    ),
    "retain.name": Meaning("what chooses retain documents", "see `rayunlearn list selectors`"),
    "retain.ratio": Meaning("share of the retain set that trains", "(0, 1]"),
    "retain.seed": Meaning("of that selector and of general text"),
    "retain.general": Meaning("share of them that is general text instead", "[0, 1]"),
    "retain.file": Meaning("general text; '': our own", "file"),
    "retain.extractor": Meaning(
        "what finds the keywords of keyword_neighbours", "see `rayunlearn list extractors`"
    ),
    "method.forget": Meaning("forget loss", "see `rayunlearn list methods`"),
    "method.retain": Meaning("retain loss", "see `rayunlearn list methods`"),
    "method.forget_weight": Meaning("weight of the forget loss", ">= 0"),
    "method.retain_weight": Meaning("weight of the retain loss", ">= 0"),
    "method.layer": Meaning("block at which losses read activations, from 0", ">= 0"),
    "method.steering_unit": Meaning("what rmu.steering counts", config.STEERING_UNITS),
    "method.preferred": Meaning("the text that dpo prefers to the answer", config.PREFERRED),
    "method.wrappers": Meaning("what is put around the method", "see `rayunlearn list methods`"),
    "token.temperature": Meaning("divides the logits of the forget loss", "> 0"),
    "token.keep": Meaning("share of tokens that count, the best remembered first", "(0, 1]"),
    "token.cap": Meaning(
        "summed NLL in nats from which a document counts no more; 0: none", ">= 0"
    ),
    "token.words": Meaning("words to which the loss is restricted", "WORD,..."),
    "train.learning_rate": Meaning("peak learning rate", "> 0"),
    "train.batch_size": Meaning("documents of a step", ">= 1"),
    "train.length": Meaning("how long training is, counted in train.unit", ">= 0"),
    "train.unit": Meaning("what train.length counts", config.UNITS),
    "train.schedule": Meaning("of the learning rate after the warm-up", config.SCHEDULES),
    "train.warmup_fraction": Meaning("share of the steps that warm up", "[0, 1)"),
    "train.weight_decay": Meaning("decoupled weight decay", ">= 0"),
    "train.max_grad_norm": Meaning("gradients are clipped to this norm", "> 0"),
    "train.parameters": Meaning("which parameters are trained, by name", "regular expression"),
    "train.layers": Meaning("blocks that are trained; '': all", "N,... from 0"),
    "train.adapter": Meaning(
        "what is trained instead of the weights", "see `rayunlearn list methods`"
    ),
    "train.accumulation": Meaning("pieces in which a step's documents pass", ">= 1"),
    "train.precision": Meaning("precision of the products", config.PRECISIONS),
    "train.checkpoint_every": Meaning("steps between checkpoints; 0: none", ">= 0"),
    "train.optimizer": Meaning(
        "how a step follows from the gradient", "see `rayunlearn list methods`"
    ),
    "train.weights": Meaning("how weights are stored while a model trains", config.STORAGES),
    "train.master_weights": Meaning("float32 copies of trained weights in bfloat16", BOOLEAN),
    "train.checkpoint_activations": Meaning("blocks keep their inputs alone", BOOLEAN),
    "train.compile": Meaning("blocks are compiled by torch.compile", BOOLEAN),
    "train.seed": Meaning("draws batches, companions and directions"),
    "stop.utility_floor": Meaning(
        "share of base's utility below which a trial has collapsed", "[0, 1)"
    ),
    "stop.retention_floor": Meaning(
        "share of base's utility at which training ends; 0: off", "[0, 1)"
    ),
    "stop.check_every": Meaning("steps between evaluations during training", ">= 1"),
    "stop.keep": Meaning("weights that a trial ends with", config.KEPT_WEIGHTS),
    "stop.keep_floor": Meaning("share of base's utility that the best weights keep", "[0, 1]"),
    "stop.forgetting": Meaning("forgetting metric during training", "a cheap metric"),
    "stop.utility": Meaning("utility metric during training", "a cheap metric"),
    "stop.utility_split": Meaning("its split", "a split"),
    "stop.target": Meaning("what forgetting aims at during training", config.TARGETS),
    "measure.metrics": Meaning(
        "what is measured", "cheap, all, NAME,... of `rayunlearn list metrics`"
    ),
    "measure.max_new_tokens": Meaning("tokens of a generated answer at most", ">= 1"),
    "measure.samples": Meaning("answers that metrics of samples draw", ">= 1"),
    "measure.temperature": Meaning("of those samples", "> 0"),
    "measure.top_p": Meaning("probability mass that they are drawn from", "(0, 1]"),
    "measure.seed": Meaning("of those samples"),
    "measure.shots": Meaning("solved questions before one of a few-shot metric", ">= 1"),
    "measure.limit_probes": Meaning("documents that are asked at most", "N, or SET=N,..."),
    "measure.attack": Meaning(
        "attack on every trial's own model", "none, `rayunlearn list attacks`"
    ),
    "measure.keep_texts": Meaning("documents of each split whose texts are kept", ">= 0"),
    "judge.answers": Meaning("chat model that judges what was written", MODEL),
    "measure.harness": Meaning(
        "tasks of lm-evaluation-harness that every model is asked", "TASK,..."
    ),
    "measure.harness_include": Meaning("your own tasks of it", "folder"),
    "measure.harness_limit": Meaning("questions of a task at most; 0: all", ">= 0"),
    "calibrate.tau": Meaning(
        "share of base's retention to interpolate to; 0: not at all", "[0, 1]"
    ),
    "calibrate.beside": Meaning("a second such share; 0: none", "[0, 1]"),
    "calibrate.retention": Meaning("metric of retention", "a metric, higher is more knowledge"),
    "calibrate.split": Meaning("its split", "a split"),
    "attack.name": Meaning("the attack", "none, see `rayunlearn list attacks`"),
    "attack.seed": Meaning("draws documents, held-out facts and noise"),
    "attack.file": Meaning("text that the attack reads; '': our own", "file"),
    "attack.chat_model": Meaning("rewrites questions", MODEL),
    "attack.curve_metric": Meaning("metric of the recovery curve", "cheap metric, letter_choice"),
    "attack.curve_points": Meaning("points of the recovery curve at most", ">= 1"),
    "explain.documents": Meaning("questions of each split that are explained; 0: none", ">= 0"),
    "explain.splits": Meaning("of these splits alone; '': of all", "splits, separated by commas"),
    "explain.alpha": Meaning(
        "share of the strongest contribution that makes a key token", "[0, 1)"
    ),
    "explain.beta": Meaning("helping tokens up to which all are key tokens", ">= 1"),
    "explain.gradient_steps": Meaning("steps of integrated gradients; 0: none", ">= 0"),
    "explain.wording": Meaning("how key words are named", "text with {words}"),
    "explain.path_points": Meaning("models on a straight line of weights; 0: none", "0, or >= 3"),
    "harness.task": Meaning("the task that a model is asked, by `rayunlearn harness`", "a task"),
    "harness.include": Meaning("your own tasks", "folder"),
    "harness.limit": Meaning("questions of the task at most; 0: all", ">= 0"),
    "harness.shots": Meaning("solved examples before each question; '': the task's own", "N"),
    "explain.diagnostics": Meaning("what each block's weights and activations tell", BOOLEAN),
    "explain.g_effect": Meaning("inner products of gradients while it trains", BOOLEAN),
}
