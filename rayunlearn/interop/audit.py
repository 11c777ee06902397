"""The audit of a model that was unlearned elsewhere: it becomes the one cell of an experiment,
measured and attacked as a trial is.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rayunlearn.config import Method, Objective, Trial, Value, with_values
from rayunlearn.errors import require
from rayunlearn.experiment import Budget, Experiment, check_measured
from rayunlearn.models.folder import read_tokenizer
from rayunlearn.models.model_files import check_directory, read_config_json, resolve_model
from rayunlearn.trial.identity import identify_trial
from rayunlearn.trial.workspace import validate_trial

QUESTION = "Is what {model} was to forget gone, or can it be recovered?"


def audit_of(
    model: str, base: str, gold: str, values: Mapping[str, Value], *, metric: str
) -> Experiment:
    """The experiment that measures `model` beside `base` and, where it is not '', `gold`:
    directories or Hub names.

    `values` say which data (`data.name`, `data.path`) and change any other setting; `metric`, ''
    for probability, is what attacks are to raise on split forget. Its version names the model and
    its content, so that the same call is the same run. Raises UserError, before weights are read
    into memory, for a model that does not load from safetensors, for models whose vocabularies
    differ, and as `workspace.validate_trial` does.
    """
    require(bool(base), "an audit must have --base, the model before unlearning; got", base)
    check_models({"--model": model, "--base": base, "--gold": gold})
    trial = _audited_trial(model, base, gold, values)
    goal = Objective()
    if metric:
        goal = Objective(forgetting=metric, utility=metric)
    experiment = Experiment(
        name="audit",
        question=QUESTION.format(model=model),
        base=trial,
        grids=((),),
        search={},
        budget=Budget(tuning="none"),
        objective=goal,
        version=_version_of(model, trial),
    )
    check_measured(experiment)
    return experiment


def _audited_trial(model: str, base: str, gold: str, values: Mapping[str, Value]) -> Trial:
    """The trial whose unlearned model is `model`, checked, with paths in full."""
    models: dict[str, Value] = {
        "model.teach": False,
        "model.name": base,
        "model.gold": gold,
        "model.unlearned": model,
    }
    # Nothing is trained, so no loss is chosen: the retain-only trial is the one that keeps no
    # coreset.
    start = Trial(method=Method(forget="none"))
    return validate_trial(with_values(start, {**models, **values}))


def _version_of(model: str, trial: Trial) -> str:
    """The model's name and the beginning of the trial's id: the same call is the same run."""
    # a gold model that is named later is a control more of the same run
    without_gold = replace(trial, model=replace(trial.model, gold=""))
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(model).resolve().name)
    return f"{safe}-{identify_trial(without_gold)[:6]}"


def check_models(named: Mapping[str, str]) -> None:
    """Raise UserError unless every named model ('' is none) has safetensors weights, and shape and
    vocabulary of the first.

    An attack asks all of them the same tokens and compares what their layers hold. Tokens that only
    one of two has, for padding as a rule, do not count.
    """
    directories = {option: resolve_model(name) for option, name in named.items() if name}
    for directory in directories.values():
        check_directory(directory)
    first, *rest = directories
    shape, words = shape_of(directories[first]), read_tokenizer(directories[first]).get_vocab()
    for option in rest:
        require(
            shape_of(directories[option]) == shape,
            f"{option} must have the blocks and width of {first}, {shape}; it has",
            shape_of(directories[option]),
        )
        moved = sorted(
            word
            for word, token_id in read_tokenizer(directories[option]).get_vocab().items()
            if words.get(word, token_id) != token_id
        )
        require(
            not moved,
            f"{option} must have the token ids of {first}; {len(moved)} are others, such as",
            moved[:3],
        )


def shape_of(directory: Path) -> tuple[object, ...]:
    """(blocks, width) as config.json says."""
    config = read_config_json(directory / "config.json")
    return (config.get("num_hidden_layers"), config.get("hidden_size"))
