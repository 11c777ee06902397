"""The canonical form of a trial: settings that change nothing are set to one value."""

from collections.abc import Callable
from dataclasses import replace

from rayunlearn.config import (
    FULL_RATIO,
    SUBSTITUTES,
    Method,
    Retain,
    Select,
    Token,
    Trial,
    with_values,
)

CheckTrial = Callable[[Trial], Trial]


def canonical_trial(trial: Trial, *, check: CheckTrial) -> Trial:
    """The one form of a trial that others differ from in name only.

    Base and gold train nothing: only their data, their model and what is measured and explained
    count. With the full forget set the selector does not matter; without a forget loss (the
    retain-only control) neither selector nor ratio does, except that `epochs` of a smaller coreset
    are fewer steps, so there the control keeps its ratio; token rules and the forget weight are
    forget's. Other texts than the original are another training, so only what chooses documents is
    dropped there. Without a retain loss nothing of the retain set trains, and where all of it does
    nothing chooses.
    """
    # `check` keeps, of the options of base and gold, those of the metrics
    return check(without_effect(trial))


def without_effect(trial: Trial) -> Trial:
    """`canonical_trial` before its options are checked: cheap enough for every cell of a grid."""
    if trial.stage != "unlearned":
        return measured_stage(trial, trial.stage)
    if trial.retain != Retain():
        trial = replace(trial, retain=canonical_retain(trial))
    if trial.method.forget == "none":
        ratio = trial.select.ratio if trial.train.unit == "epochs" else FULL_RATIO
        method = replace(trial.method, forget_weight=Method.forget_weight)
        return replace(trial, method=method, select=Select(ratio=ratio), token=Token())
    if trial.select.text != "other_documents" and trial.select.other_split:
        trial = replace(trial, select=replace(trial.select, other_split=""))
    if trial.select.is_full:
        return replace(trial, select=canonical_full_set(trial.select))
    return trial


def measured_stage(trial: Trial, stage: str) -> Trial:
    """The trial that measures a stage and trains nothing, with the options that `trial` has."""
    return Trial(
        stage=stage,
        data=trial.data,
        model=trial.model,
        measure=trial.measure,
        judge=trial.judge,
        explain=replace(trial.explain, path_points=0, g_effect=False),
        options=trial.options,
    )


def canonical_full_set(select: Select) -> Select:
    """The one form of a selection of everything: nothing chooses documents, and without a text
    ablation nothing else matters.
    """
    if select.text == "original":
        return Select()
    is_random = select.text in ("random_words", "shuffled_keywords", *SUBSTITUTES)
    return replace(select, name="random", stratified=True, seed=select.seed if is_random else 0)


def canonical_retain(trial: Trial) -> Retain:
    """The one form of what the retain loss trains on; `registry.check_trial` drops the extractor
    that no retain selector asks for."""
    retain = trial.retain
    if trial.method.retain == "none" or retain.is_full:
        return Retain()
    if retain.general == 0:
        return replace(retain, file="")
    # nothing but general text
    return replace(retain, name=Retain.name) if retain.general == 1 else retain


def control_of(cell: Trial) -> Trial:
    """The same training without the forget loss."""
    return with_values(cell, {"method.forget": "none"})


def has_gold(trial: Trial) -> bool:
    """Whether there is a model that never saw the forget set:
    one is trained here, or one was named.
    """
    return trial.model.teach or bool(trial.model.gold)
