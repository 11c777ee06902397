"""The names of inputs that a selector may ask for are those that it is given."""

from rayunlearn.config import Method, Select, Trial
from rayunlearn.methods.forget import FORGET
from rayunlearn.registry import check_trial
from rayunlearn.selectors.table import SELECTOR_INPUTS, SELECTORS
from rayunlearn.trial.coreset import SelectorInputs
from rayunlearn.trial.input_names import check_inputs, inputs_of

# attributes that are set when the view is made, and its one method
OTHERWISE = {"n_documents", "seed", "n_ranked", "norms_along"}


def test_the_table_of_inputs_is_what_selectors_are_given() -> None:
    assert set(SELECTOR_INPUTS) == {*inputs_of(SelectorInputs), *OTHERWISE}


def test_every_function_of_the_package_asks_for_inputs_that_there_are() -> None:
    for name in SELECTORS:
        check_inputs(check_trial(Trial(select=Select(name=name))))
    for name in FORGET:
        retain = "none" if name == "task_vector" else "nll"
        check_inputs(check_trial(Trial(method=Method(forget=name, retain=retain))))
