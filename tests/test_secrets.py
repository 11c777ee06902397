"""Secrets are in nothing that is written or printed, and settings, which are rows, hold none."""

from collections.abc import Callable

import pytest

from rayunlearn.config import Data, Model, Trial, parse_assignments, with_values
from rayunlearn.errors import UserError, without_secrets


def test_secrets_are_taken_out_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "abcdefgh-very-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    said = (
        "401 for https://me:hunter2@host/x with abcdefgh-very-secret, wJalrXUtnFEMI/K7MDENG and"
        " hf_AbCdEfGhIjKlMnOp"
    )
    assert (
        without_secrets(said)
        == "401 for https://<login>@host/x with <HF_TOKEN>, <AWS_SECRET_ACCESS_KEY> and <token>"
    )
    assert (
        without_secrets("a plain message about keys and tokens")
        == "a plain message about keys and tokens"
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Data(name="files", path="s3://key:hunter2@bucket/x"),
        lambda: Model(name="https://me:hunter2@hub/x"),
    ],
)
def test_a_login_in_a_setting_is_refused_without_repeating_it(make: Callable[[], object]) -> None:
    with pytest.raises(UserError, match="must hold no login") as caught:
        make()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    ["train.layers=" + "9" * 5000, "train.seed=" + "9" * 5000, "train.seed=" + "[" * 100_000],
)
def test_values_that_no_parser_holds_are_the_users_mistake(word: str) -> None:
    with pytest.raises(UserError, match=r"^train\."):
        with_values(Trial(), parse_assignments([word]))
