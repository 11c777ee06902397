"""The tables of methods, selectors and metrics as one directory, and the check of a trial against
them.

A hyperparameter is a keyword-only argument of a family function; `<function>.<argument>` is its
name everywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from rayunlearn.attacks.table import ATTACKS
from rayunlearn.attribution.integrated_gradients import check_library
from rayunlearn.config import (
    Attack,
    Calibrate,
    Harness,
    Retain,
    Stop,
    Trial,
    Value,
    coerce_value,
    field_names,
)
from rayunlearn.errors import require, unknown_name
from rayunlearn.keywords.table import EXTRACTORS
from rayunlearn.methods.forget import FORGET
from rayunlearn.methods.loss_inputs import paired_response_kinds
from rayunlearn.methods.paired_responses import PAIRED_RESPONSES
from rayunlearn.methods.retain import RETAIN
from rayunlearn.methods.task_vector import as_trained
from rayunlearn.metrics.evaluate import chosen_metrics
from rayunlearn.metrics.table import CHEAP, CURVE_METRICS, JUDGED, METRICS
from rayunlearn.ranges import Option, checked_value, options_of, required_inputs
from rayunlearn.selectors.retain import RETAIN_SELECTORS
from rayunlearn.selectors.table import SELECTORS
from rayunlearn.train.adapters import ADAPTERS
from rayunlearn.train.optimizers import OPTIMIZERS, check_installed
from rayunlearn.train.wrappers import WRAPPERS, names_of

# kinds of attacks after which a model is measured as it was before; the others measure in their own
# way
WITH_ALL_METRICS = ("weights", "prompt", "tokens")


def option_names() -> dict[str, Option]:
    """Every hyperparameter of every family, by dotted name."""
    tables: tuple[Mapping[str, Any], ...] = (
        FORGET,
        RETAIN,
        PAIRED_RESPONSES,
        WRAPPERS,
        ADAPTERS,
        OPTIMIZERS,
        SELECTORS,
        RETAIN_SELECTORS,
        EXTRACTORS,
        METRICS,
        ATTACKS,
    )
    functions = [row.function for table in tables for row in table.values()]
    functions += [part for row in FORGET.values() for part in (row.weighting, row.ending)]
    return _options_by_name(tuple(functions))


@lru_cache(maxsize=8)
def _options_by_name(functions: tuple[Callable[..., Any], ...]) -> dict[str, Option]:
    return {option.name: option for function in functions for option in options_of(function)}


def chosen_functions(trial: Trial) -> tuple[Callable[..., Any], ...]:
    """The functions that a trial names, after checking the names."""
    metrics = chosen_metrics(trial.measure.metrics) | (
        chosen_metrics(trial.calibrate.retention) if trial.calibrate.tau else {}
    )
    names_keywords = reads_keywords(trial.retain)
    tables: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
        ("method.forget", trial.method.forget, FORGET),
        ("method.retain", trial.method.retain, RETAIN),
        ("select.name", trial.select.name, SELECTORS),
        ("select.extractor", trial.select.extractor, EXTRACTORS),
        ("retain.name", trial.retain.name, RETAIN_SELECTORS),
        *([("retain.extractor", trial.retain.extractor, EXTRACTORS)] if names_keywords else []),
        ("train.adapter", trial.train.adapter, ADAPTERS),
        ("train.optimizer", trial.train.optimizer, OPTIMIZERS),
        *(("method.wrappers", name, WRAPPERS) for name in names_of(trial.method.wrappers)),
        *([("attack.name", trial.attack.name, ATTACKS)] if trial.attack.name != "none" else []),
        *([("measure.attack", own_attack(trial), ATTACKS)] if own_attack(trial) != "none" else []),
    )
    for setting, name, table in tables:
        if name not in table:
            raise unknown_name(setting, name, table)
    row = FORGET[trial.method.forget]
    companions = (
        paired_response_function(trial, kind) for kind in paired_response_kinds(row.function)
    )
    measured = (metric.function for metric in metrics.values())
    return (
        *(table[name].function for _, name, table in tables),
        *companions,
        row.weighting,
        row.ending,
        *measured,
    )


def reads_keywords(retain: Retain) -> bool:
    """Whether the retain selector looks at the forget set's keywords. Raises UserError for a name
    that is none.
    """
    if retain.name not in RETAIN_SELECTORS:
        raise unknown_name("retain.name", retain.name, RETAIN_SELECTORS)
    return "forget_keywords" in required_inputs(RETAIN_SELECTORS[retain.name].function)


def own_attack(trial: Trial) -> str:
    """The attack that a trial makes on its own model; an attack's trial makes no further one."""
    return trial.measure.attack if trial.attack.name == "none" else "none"


def paired_response_function(trial: Trial, kind: str) -> Callable[..., Any]:
    """What makes the companions that a loss calls `kind`: `preferred` is the kind that
    `method.preferred` names.
    """
    return PAIRED_RESPONSES[trial.method.preferred if kind == "preferred" else kind].function


def check_combination(trial: Trial) -> None:
    """Raise UserError for choices that contradict each other. Names must have been checked."""
    _check_method(trial)
    _check_retain(trial)
    _check_measuring(trial)
    after = trial.calibrate.tau or trial.explain.path_points
    require(
        not (trial.model.unlearned and after),
        "calibrate.tau and explain.path_points must be 0 with model.unlearned, whose training is"
        " not ours",
        after,
    )


def _check_steering(trial: Trial) -> None:
    """Steering in lengths of activations is for a loss with a steering, and not for a selector that
    takes the gradient of the loss, which has it absolute."""
    method, select = trial.method, trial.select
    if method.steering_unit == "absolute" or method.forget == "none":
        return
    steers = any(o.argument == "steering" for o in options_of(FORGET[method.forget].function))
    rule = "method.steering_unit must be 'absolute' with a forget loss without a steering"
    require(steers, rule, method.forget)
    uses_loss = "norms_along" in required_inputs(SELECTORS[select.name].function)
    rule = "method.steering_unit must be 'absolute' with a selector that follows the loss"
    require(not uses_loss or select.is_full, rule, select.name)


def _check_method(trial: Trial) -> None:
    """The losses, what is put around them, and what is trained."""
    method, adapter, wrappers = trial.method, trial.train.adapter, names_of(trial.method.wrappers)
    require(
        len(set(wrappers)) == len(wrappers),
        "method.wrappers must name each wrapper once",
        method.wrappers,
    )
    _check_steering(trial)
    in_space = FORGET[method.forget].ending is not as_trained
    rule = f"method.retain must be 'none' with {method.forget}, which takes away what is learned"
    require(not in_space or method.retain == "none", rule, method.retain)
    rule = f"train.adapter must be 'none' with {method.forget}, a step in the space of the weights"
    require(adapter == "none" or not in_space, rule, adapter)
    require(
        adapter == "none" or "ball" not in wrappers,
        "train.adapter must be 'none' with the wrapper ball: adapters start at zero",
        adapter,
    )
    floor, after = trial.stop.retention_floor, changes_after_training(trial)
    require(
        floor == 0 or not after,
        "stop.retention_floor must be 0 where weights change after the last step (average, task"
        " vectors)",
        floor,
    )
    require(
        trial.stop.keep == "last" or not after,
        "stop.keep must be 'last' where weights change after the last step (average, task vectors)",
        trial.stop.keep,
    )


def changes_after_training(trial: Trial) -> bool:
    """Whether the trial's weights become what they are to be after the last step only (averages,
    task vectors).
    """
    ends_as_trained = FORGET[trial.method.forget].ending is as_trained
    return not ends_as_trained or "average" in names_of(trial.method.wrappers)


def _check_retain(trial: Trial) -> None:
    """The retain set's part that trains, where a part trains."""
    if not reads_keywords(trial.retain):
        return
    extractor = trial.retain.extractor
    asks_chat = "judged" in required_inputs(EXTRACTORS[extractor].function)
    rule = "retain.extractor must be no extractor that asks a chat model"
    require(not asks_chat, rule, extractor)


def _check_measuring(trial: Trial) -> None:
    """What is measured of the trained model."""
    retention = chosen_metrics(trial.calibrate.retention)
    require(
        [row.direction for row in retention.values()] == ["higher"],
        "calibrate.retention must be one metric where higher is more knowledge",
        trial.calibrate.retention,
    )
    require(
        trial.attack.curve_metric in CURVE_METRICS,
        "attack.curve_metric must be a cheap metric or letter_choice (docs/metrics.md)",
        trial.attack.curve_metric,
    )
    for setting in ("forgetting", "utility"):
        name = getattr(trial.stop, setting)
        is_shown = name in CHEAP and METRICS[name].direction == "higher"
        rule = f"stop.{setting} must be a cheap metric where higher is more knowledge"
        require(is_shown, f"{rule} (docs/metrics.md)", name)
    asked = {*chosen_metrics(trial.measure.metrics), *(retention if trial.calibrate.tau else ())}
    _check_judge(trial.judge.answers, sorted(asked & {*JUDGED}))
    attack = own_attack(trial)
    require(
        attack == "none" or ATTACKS[attack].kind in WITH_ALL_METRICS,
        f"measure.attack must be an attack of kind {', '.join(WITH_ALL_METRICS)}, after which every"
        " metric is measured",
        attack,
    )
    check_library(trial.explain.gradient_steps)
    check_installed(trial.train.optimizer)


def _check_judge(answers: str, judged: list[str]) -> None:
    """A judge for its metrics, and metrics for a judge."""
    rule = f"judge.answers must name a chat model for {', '.join(judged)}"
    require(bool(answers) or not judged, rule, answers)
    rule = f"measure.metrics must name one of {', '.join(JUDGED)} for judge.answers to be asked"
    require(bool(judged) or not answers, rule, answers)


def check_trial(trial: Trial) -> Trial:
    """The same trial with the options of unchosen functions dropped and defaults filled in.

    Base and gold train nothing: of the options given they keep those of their metrics and attack.
    Raises UserError for a name that no table has, for an option that no function has, and for a
    value out of range.
    """
    valid_names = option_names()
    for name, value in trial.options:
        _check_option(name, value, valid_names)
    functions = chosen_functions(trial)
    check_combination(trial)
    settings = {
        name: value
        for name, value in trial.options
        if trial.stage == "unlearned" or _function_of(name) in (*METRICS, *ATTACKS)
    }
    valid_options = [option for function in functions for option in options_of(function)]
    best_kept = trial.stop.keep == "best"
    stop = trial.stop if best_kept else replace(trial.stop, keep_floor=Stop.keep_floor)
    filled = {
        o.name: coerce_value(o.name, settings.get(o.name, o.default), o.kind) for o in valid_options
    }
    n_samples = filled.get("leak_at_k.k", 1)
    require(
        trial.measure.samples >= int(n_samples),
        f"measure.samples must be >= leak_at_k.k, here {n_samples}",
        trial.measure.samples,
    )
    options = _shared(tuple(sorted(filled.items())))
    measure = replace(trial.measure, attack=own_attack(trial))
    return replace(_without_idle_sections(trial), stop=stop, measure=measure, options=options)


def _without_idle_sections(trial: Trial) -> Trial:
    """The trial without settings of an attack, a calibration or a task of the harness that it does
    not have, and without an extractor that its retain selector does not ask for.
    """
    if trial.attack.name == "none":
        trial = replace(trial, attack=Attack())
    if not trial.calibrate.tau:
        trial = replace(trial, calibrate=Calibrate())
    if not trial.harness.task:
        trial = replace(trial, harness=Harness())
    if reads_keywords(trial.retain):
        return trial
    return replace(trial, retain=replace(trial.retain, extractor=Retain.extractor))


@lru_cache(maxsize=1024)
def _shared(options: tuple[tuple[str, Value], ...]) -> tuple[tuple[str, Value], ...]:
    """The first of equal options: thousands of trials of a plan hold the same ones."""
    return options


def arguments_of(trial: Trial, function: Callable[..., Any]) -> dict[str, Value]:
    """The keyword arguments that a checked trial gives to one of its functions."""
    options = dict(trial.options)
    return {o.argument: options[o.name] for o in options_of(function)}


def _function_of(option: str) -> str:
    return option.partition(".")[0]


def _check_option(name: str, value: Value, valid_names: Mapping[str, Option]) -> None:
    if name not in valid_names:
        raise unknown_name("setting", name, (*valid_names, *field_names()))
    checked_value(valid_names[name], value)
