"""Recipes: every value is a setting that a trial takes, has a source,
and is what its sheet says.
"""

from pathlib import Path

import pytest

from rayunlearn.cli.arguments import experiment_of
from rayunlearn.cli.main import main, parser
from rayunlearn.config import Trial, flatten, with_values
from rayunlearn.errors import UserError
from rayunlearn.recipes import OUR_CHOICE, RECIPES, values
from rayunlearn.registry import check_trial


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_makes_a_trial_in_which_all_its_values_stand(name: str) -> None:
    """An option of a function that the recipe does not choose would be dropped by the check."""
    flat = flatten(check_trial(with_values(Trial(), values(name))))
    assert {key: flat[key] for key in values(name)} == values(name)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_decides_method_rate_length_and_batch_and_names_its_sources(name: str) -> None:
    recipe = RECIPES[name]
    wanted = {
        "method.forget",
        "method.retain",
        "train.learning_rate",
        "train.length",
        "train.unit",
        "train.batch_size",
    }
    assert wanted <= set(recipe.settings)
    assert recipe.title and recipe.model and recipe.corpus and recipe.departures
    assert all(setting.source for setting in recipe.settings.values())


def test_what_no_source_says_is_never_called_confirmed() -> None:
    settings = [setting for recipe in RECIPES.values() for setting in recipe.settings.values()]
    assert all(not setting.confirmed for setting in settings if setting.source == OUR_CHOICE)
    assert any(setting.confirmed for setting in settings) and not all(
        setting.confirmed for setting in settings
    )


def test_rmu_on_zephyr_is_the_released_run() -> None:
    """Steering 6.5, alpha 1200, loss at block 7, down projections of 5 to 7, rate 5e-5, 150 steps
    of 4 documents.
    """
    found = values("rmu_zephyr_wmdp")
    assert (found["rmu.steering"], found["method.retain_weight"], found["method.layer"]) == (
        6.5,
        1200.0,
        7,
    )
    assert (found["train.learning_rate"], found["train.length"], found["train.batch_size"]) == (
        5e-5,
        150.0,
        4,
    )
    assert found["train.parameters"] == r"layers\.(5|6|7)\.mlp\.down_proj\.weight$"


def test_simnpo_has_the_published_weights_of_its_two_terms() -> None:
    for size, weight in (("10", 0.125), ("05", 0.1375)):
        recipe = values(f"simnpo_tofu_forget{size}")
        pair = (recipe["method.forget_weight"], recipe["method.retain_weight"])
        assert pair == (weight, 1.0)
    assert RECIPES["simnpo_tofu_forget05"].settings["simnpo.beta"].value == 2.5


def test_an_unknown_recipe_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(
        UserError, match=r"unknown recipe 'rmu_zephir_wmdp'; did you mean 'rmu_zephyr_wmdp'\?"
    ):
        values("rmu_zephir_wmdp")


def test_list_recipes_prints_every_value_with_its_source_and_says_what_is_not_confirmed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list", "recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)
    assert "rmu.steering = 6.5 (code of WMDP (c0b6c12))" in printed
    assert "train.learning_rate = 5e-05, not confirmed (the default of the same code)" in printed


def test_a_recipe_of_the_command_line_changes_the_experiment_and_set_goes_over_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "small.py"
    file.write_text(
        '"""Question."""\nfrom rayunlearn.config import Trial\nBASE = Trial()\nAXES ='
        ' {"select.ratio": (0.5, 1.0)}\n'
    )
    chosen = parser().parse_args(
        [
            "plan",
            str(file),
            "--recipe",
            "npo_sam_zephyr_wmdp",
            "--set",
            "model.name=scratch",
            "model.teach=true",
        ]
    )
    base = flatten(experiment_of(chosen).base)
    assert (base["npo.beta"], base["method.wrappers"], base["sam.radius"]) == (0.015, "sam", 0.01)
    assert base["model.name"] == "scratch"


def test_a_recipe_that_is_not_there_ends_the_command_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.py"
    file.write_text(
        '"""Question."""\nfrom rayunlearn.config import Trial\nBASE = Trial()\nAXES ='
        ' {"select.ratio": (0.5, 1.0)}\n'
    )
    assert main(["plan", str(file), "--recipe", "rmu"]) == 2
    assert capsys.readouterr().err.startswith("rayunlearn: unknown recipe 'rmu'")
