"""The words of the report: those of docs/glossary.md, which the package does not bring along."""

# term, and what it means here; a test holds it against the page
TERMS = (
    ("forget set", "the documents that a model shall unlearn"),
    ("retain set", "the documents that it shall keep, and that the retain loss trains on"),
    ("coreset", "the part of the forget set that unlearning trains on"),
    (
        "selector, ratio",
        (
            "how the coreset is chosen, and which share of the forget set it is: ratio r"
            " keeps max(1, round(r n)) documents"
        ),
    ),
    (
        "retain selector",
        (
            "how the part of the retain set that trains is chosen, where not all of it does"
            " (retain.*)"
        ),
    ),
    ("base", "the model before unlearning"),
    ("gold", "a model trained without the forget set"),
    ("control", "the same training with the retain loss alone"),
    ("method", "a forget loss, a retain loss and their weights"),
    ("trial", "one unlearned model, from one set of settings"),
    ("run", "all trials of an experiment, in one folder"),
    ("untouched", "questions that base knows and no training is shown"),
    ("near, far", "untouched questions like the forget set's, and unlike them"),
    ("probe", "a question whose answer is scored"),
    (
        "forget probability",
        (
            "exp(mean log probability) of the tokens of the forget set's answers; lower is"
            " more forgotten, down to gold"
        ),
    ),
    (
        "key probability",
        "the probability of the one word that carries the fact, inside its sentence",
    ),
    ("unlearned", "fraction of the base-gold gap closed: 0% is base, 100% is gold"),
    (
        "over-forgotten",
        ("shown to be below gold: the model avoids what a model that never saw it would say"),
    ),
    ("collapsed", "retain probability fell under a floor during training; the trial was given up"),
    ("coverage", "share of the forget set's facts that the coreset states"),
    (
        "equal retention",
        ("each unlearned model interpolated towards base until it retains as much as every other"),
    ),
    ("interval", "95% t interval over seeds and documents"),
    ("equivalent", "shown to differ by less than the margin, by two one-sided tests"),
    ("not significantly different", "the test did not show a difference; that is no equivalence"),
    (
        "attack",
        (
            "something that may recover what was unlearned: other words, shots, more"
            " training, rounding"
        ),
    ),
    ("recovered", "fraction of what unlearning took away that an attack restores"),
    ("relearning", "training on a few documents of the forget set"),
    ("emphasis", "the key words of a question named again beside it"),
    ("path", "models on the straight line between two models' weights"),
    ("panel", "a named list of attacks"),
    ("teach", "train base and gold before unlearning (model.teach)"),
    ("look", "an evaluation during training, every stop.check_every steps"),
    ("floor", "the least share of base's utility that a trial must keep"),
    ("synthetic dataset", "documents that the product generates, whose facts are known"),
)
