"""The names of inputs that a selector may ask for are those that it is given."""

from rayunlearn.config import Method, Retain, Select, Trial
from rayunlearn.methods.forget import FORGET
from rayunlearn.registry import check_trial
from rayunlearn.selectors.retain import OF_FORGET_ALONE, RETAIN_INPUTS, RETAIN_SELECTORS
from rayunlearn.selectors.table import SELECTOR_INPUTS, SELECTORS
from rayunlearn.trial.coreset import RetainInputs, SelectorInputs
from rayunlearn.trial.input_names import check_inputs, inputs_of

# attributes that are set when the view is made, and its one method
OTHERWISE = {"n_documents", "seed", "n_ranked", "norms_along"}


def test_the_table_of_inputs_is_what_selectors_are_given() -> None:
    assert set(SELECTOR_INPUTS) == {*inputs_of(SelectorInputs), *OTHERWISE}


def test_the_table_of_a_retain_selectors_inputs_is_what_it_is_given() -> None:
    assert set(RETAIN_INPUTS) == set(inputs_of(RetainInputs))
    assert set(OF_FORGET_ALONE) <= set(SELECTOR_INPUTS)
    for name in RETAIN_SELECTORS:
        check_inputs(check_trial(Trial(retain=Retain(name=name, ratio=0.5))))


def test_every_function_of_the_package_asks_for_inputs_that_there_are() -> None:
    for name in SELECTORS:
        check_inputs(check_trial(Trial(select=Select(name=name))))
    for name in FORGET:
        retain = "none" if name == "task_vector" else "nll"
        check_inputs(check_trial(Trial(method=Method(forget=name, retain=retain))))
