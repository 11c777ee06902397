"""The check of a trial against the tables: names, options, ranges."""

import pytest

from rayunlearn.config import Trial, flatten, trial_id, with_values
from rayunlearn.errors import UserError
from rayunlearn.methods.forget import npo
from rayunlearn.ranges import options_of
from rayunlearn.registry import arguments_of, check_trial, chosen_functions, option_names


def test_defaults_of_the_chosen_functions_are_filled_in_and_others_dropped() -> None:
    trial = check_trial(with_values(Trial(), {"method.forget": "npo", "rmu.steering": 3.0}))
    assert dict(trial.options) == {"npo.beta": 0.1, "tfidf.earliness": 1.0}
    assert arguments_of(trial, npo) == {"beta": 0.1}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("method.forget", "npoo", r"unknown method\.forget 'npoo'; did you mean 'npo'\?"),
        ("select.name", "ramdom", r"did you mean 'random'\?"),
        ("npo.bata", 0.1, r"unknown setting 'npo\.bata'; did you mean 'npo\.beta'\?"),
        ("trian.length", 3, r"did you mean 'train\.length'\?"),
        ("npo.beta", -1.0, r"npo\.beta must be > 0, got -1\.0"),
        ("min_k.fraction", 1.5, r"min_k\.fraction must be in \(0, 1\], got 1\.5"),
        ("npo.beta", "high", r"npo\.beta must be float, got 'high'"),
    ],
)
def test_a_mistake_is_named_with_its_rule_or_its_nearest_match(
    name: str, value: str | float, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        check_trial(with_values(Trial(), {name: value}))


def test_whole_numbers_are_taken_for_floats() -> None:
    assert flatten(check_trial(with_values(Trial(), {"npo.beta": 1})))["npo.beta"] == 1.0


def test_every_option_has_one_dotted_name_and_a_default() -> None:
    assert {
        "npo.beta",
        "rmu.steering",
        "simnpo.delta",
        "min_k.fraction",
        "moderate.clusters",
    } <= set(option_names())


@pytest.mark.parametrize("name", sorted(dict(check_trial(Trial()).options)))
def test_a_changed_default_of_a_hyperparameter_makes_another_trial(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The functions that the default trial names, with their defaults in their signatures."""
    before = trial_id(check_trial(Trial()), "c", "m")
    function, _, argument = name.partition(".")
    owner = next(f for f in chosen_functions(Trial()) if f.__name__ == function)
    monkeypatch.setitem(owner.__kwdefaults__, argument, owner.__kwdefaults__[argument] + 0.5)
    options_of.cache_clear()
    try:
        assert trial_id(check_trial(Trial()), "c", "m") != before
    finally:
        options_of.cache_clear()
