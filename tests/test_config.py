"""A trial as a value: changed copies, one name per setting, one id per meaning."""

from dataclasses import replace

import pytest

from rayunlearn.config import (
    LATER_SETTINGS,
    RESULT_NEUTRAL,
    Data,
    Model,
    Train,
    Trial,
    Value,
    block_numbers,
    coerce_value,
    digest,
    digest_of_texts,
    field_names,
    flatten,
    from_flat,
    parse_assignments,
    trial_id,
    with_values,
)
from rayunlearn.errors import UserError, unknown_name


def test_a_changed_copy_leaves_the_original_alone() -> None:
    trial = Trial()
    assert (
        with_values(trial, {"select.ratio": 0.05}).select.ratio == 0.05
        and trial.select.ratio == 1.0
    )


def test_every_setting_of_every_section_is_in_the_flat_config() -> None:
    assert {*field_names(), "stage"} == set(flatten(Trial()))


def test_one_and_one_point_zero_are_the_same_trial() -> None:
    assert trial_id(Trial(train=Train(length=100)), "c", "m") == trial_id(
        Trial(train=Train(length=100.0)), "c", "m"
    )


def test_the_id_follows_the_settings_and_the_content_but_not_the_path() -> None:
    here, there = (Trial(data=Data(name="files", path=path)) for path in ("/here", "/there"))
    assert trial_id(here, "corpus", "model") == trial_id(there, "corpus", "model")
    assert (
        len(
            {
                trial_id(here, "corpus", "model"),
                trial_id(here, "other", "model"),
                trial_id(here, "corpus", "other"),
                trial_id(Trial(), "corpus", "model"),
            }
        )
        == 4
    )


def test_the_digest_is_the_sha256_of_canonical_json() -> None:
    """sha256 of {"a":1} as printf '{"a":1}' | sha256sum gives it."""
    assert digest({"a": 1}) == "015abd7f5cc57a2d"


@pytest.mark.parametrize("texts", [(), ("",), ("a", 'é"\\\n'), ("\u2028", "🙂", "\x00")])
def test_texts_have_the_digest_of_their_list(texts: tuple[str, ...]) -> None:
    assert digest_of_texts(*texts) == digest(list(texts))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("select.ratio", 1.4, r"select\.ratio must be in \(0, 1\], got 1\.4"),
        ("select.ratio", 0, r"select\.ratio must be in \(0, 1\], got 0\.0"),
        ("select.ratoi", 0.5, r"unknown setting 'select\.ratoi'; did you mean 'select\.ratio'\?"),
        ("train.batch_size", 2.5, r"train\.batch_size must be int, got 2\.5"),
        ("train.unit", "step", r"unknown train\.unit 'step'; did you mean 'steps'\?"),
        ("data.name", "peple", r"did you mean 'people'\?"),
        ("train.learning_rate", -1, r"train\.learning_rate must be > 0, got -1"),
        ("model.teach", False, r"model\.teach must be true when model\.name is 'scratch'"),
        (
            "train.layers",
            "5,x",
            r"train\.layers must be different whole numbers from 0, separated by commas, got '5,x'",
        ),
        ("train.layers", "5,5", r"train\.layers must be different whole numbers"),
        (
            "data.name",
            "tofu",
            r"data\.path must name a directory, file or Hub data set when data\.name is 'tofu'",
        ),
        (
            "data.options",
            "size=05",
            r"data\.options must be '' when data\.name is no benchmark, got 'size=05'",
        ),
        ("data.name", "files", r"data\.path must name a directory, file or Hub data set"),
        (
            "method.forget_weight",
            -0.5,
            r"method\.forget_weight must be >= 0 and finite, got -0\.5",
        ),
        ("method.forget_weight", float("inf"), r"method\.forget_weight must be >= 0 and finite"),
    ],
)
def test_a_mistake_says_the_rule_and_the_value(name: str, value: str | float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        with_values(Trial(), {name: value})


def test_assignments_are_json_where_they_parse_and_text_elsewhere() -> None:
    assert parse_assignments(["a.b=0.05", "a.c=true", "a.d=some text", "a.e=x=y"]) == {
        "a.b": 0.05,
        "a.c": True,
        "a.d": "some text",
        "a.e": "x=y",
    }
    with pytest.raises(UserError, match="--set takes name=value, got 'a.b'"):
        parse_assignments(["a.b"])


def test_an_addition_goes_behind_the_list_that_is_there() -> None:
    words = ["measure.metrics+=rouge_l_recall", "measure.metrics+=cheap,rouge_l_f1"]
    trial = with_values(Trial(), parse_assignments(words))
    assert trial.measure.metrics == "cheap,rouge_l_recall,rouge_l_f1"
    words = ["train.layers=2", "train.layers+=5"]
    assert with_values(Trial(), parse_assignments(words)).train.layers == "2,5"
    with pytest.raises(UserError, match=r"adds to one of data.columns, .*, got 'method.forget\+'"):
        with_values(Trial(), parse_assignments(["method.forget+=rmu"]))


def test_true_is_not_taken_for_a_number() -> None:
    with pytest.raises(UserError, match="x must be float, got True"):
        coerce_value("x", True, float)


def test_blocks_are_written_as_numbers_one_or_several() -> None:
    written = [
        with_values(Trial(), parse_assignments([f"train.layers={text}"])).train.layers
        for text in ("5", "5, 6,7", "")
    ]
    assert [block_numbers(text) for text in written] == [(5,), (5, 6, 7), ()]


def test_a_flattened_trial_comes_back_with_its_options_and_without_the_settings() -> None:
    trial = with_values(
        Trial(),
        {"stage": "gold", "select.ratio": 0.25, "method.forget": "rmu", "rmu.steering": 3.5},
    )
    assert from_flat(flatten(trial) | {"npo.beta": None}) == trial
    assert from_flat({"train.length": 7.0}) == with_values(Trial(), {"train.length": 7})
    with pytest.raises(UserError, match=r"unknown setting 'train\.lenght'"):
        from_flat({"train.lenght": 7.0})


def another(value: Value) -> Value:
    """A different value of the same type."""
    if isinstance(value, bool):
        return not value
    return f"{value} and more" if isinstance(value, str) else value + 1


def with_default(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    """Make the default of a setting another one, whatever its rules are."""
    section, _, name = setting.partition(".")
    owner = type(getattr(Trial(), section))
    monkeypatch.setattr(owner, "__post_init__", lambda _self: None, raising=False)
    defaults = owner.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, name, another(defaults[name]))


# the content of what they name is in the id, and not the name
BY_CONTENT = ("data.path", "model.name")


@pytest.mark.parametrize(
    "setting", [n for n in field_names() if n not in (*RESULT_NEUTRAL, *BY_CONTENT)]
)
def test_a_changed_default_of_any_setting_makes_another_trial(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trial_id(Trial(), "c", "m")
    with_default(monkeypatch, setting)
    assert trial_id(Trial(), "c", "m") != before


def test_of_all_settings_only_checkpoints_and_privacy_make_no_other_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = trial_id(Trial(), "c", "m")
    for setting in RESULT_NEUTRAL:
        with_default(monkeypatch, setting)
    assert RESULT_NEUTRAL == ("train.checkpoint_every", "data.private")
    assert Trial().train.checkpoint_every == 1 and Trial().data.private
    assert trial_id(Trial(), "c", "m") == before


def test_a_setting_that_came_later_is_in_the_id_where_it_is_not_what_was_done_before() -> None:
    """So trials of earlier versions keep their ids; and zeros of the teaching are what they stand
    for.
    """
    loaded = Trial(model=Model(name="base"))
    assert trial_id(Trial(model=Model(teach_learning_rate=2e-3)), "c", "m") == trial_id(
        Trial(), "c", "m"
    )
    said = Model(name="base", teach_epochs=5, teach_learning_rate=1e-3, teach_batch_size=8)
    assert trial_id(replace(loaded, model=said), "c", "m") == trial_id(loaded, "c", "m")
    ids = {trial_id(loaded, "c", "m")} | {
        trial_id(with_values(loaded, {name: value}), "c", "m")
        for name, value in {
            "model.teach_epochs": 6,
            "model.teach_learning_rate": 2e-3,
            "model.teach_batch_size": 16,
            "model.teach_precision": "bfloat16",
            "method.forget_weight": 0.125,
        }.items()
    }
    assert len(ids) == 6
    assert LATER_SETTINGS["method.forget_weight"] == flatten(Trial())["method.forget_weight"] == 1.0


def test_a_forget_weight_of_zero_needs_a_retain_term() -> None:
    without: dict[str, Value] = {"method.forget_weight": 0.0}
    assert with_values(Trial(), without).method.forget_weight == 0.0
    rule = (
        r"method\.forget_weight must be > 0 when method\.retain is 'none' or"
        r" method\.retain_weight is 0, got 0\.0"
    )
    for rest in ({"method.retain": "none"}, {"method.retain_weight": 0.0}):
        with pytest.raises(UserError, match=rule):
            with_values(Trial(), without | rest)


def test_what_a_setting_names_is_in_the_id_by_its_content() -> None:
    here, there = (
        Trial(model=Model(name="base", teach=False, gold=path)) for path in ("/here", "/there")
    )
    assert trial_id(here, "c", "m", {"model.gold": "1"}) == trial_id(
        there, "c", "m", {"model.gold": "1"}
    )
    assert trial_id(here, "c", "m", {"model.gold": "1"}) != trial_id(
        here, "c", "m", {"model.gold": "2"}
    )


def test_a_name_among_many_is_answered_with_the_nearest_and_not_with_all() -> None:
    names = [f"setting.{at}" for at in range(200)] + ["npo.beta"]
    assert (
        str(unknown_name("setting", "npo.bta", names))
        == "unknown setting 'npo.bta'; did you mean 'npo.beta'? (the nearest of 201: npo.beta)"
    )
    assert (
        str(unknown_name("setting", "hinge", names))
        == "unknown setting 'hinge' (none of the 201 is like it)"
    )
    assert str(unknown_name("setting", "b", ["a", "c"])) == "unknown setting 'b' (known: a, c)"
