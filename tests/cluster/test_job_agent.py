"""What is said of a head that has no agent for jobs."""

import pytest

from rayunlearn.cluster import jobs
from rayunlearn.errors import UserError


def test_a_head_without_an_agent_is_said_at_once_and_in_the_end_with_its_likely_cause(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "AGENT_SECONDS", 0.6)
    asked = []

    def ask() -> None:
        asked.append(capsys.readouterr().err)
        raise RuntimeError("No available agent to submit job, please try again later.")

    with pytest.raises(UserError, match="may hold the agent's port 52365"):
        jobs._answered("http://head:8265", ask)
    assert len(asked) == 2 and "http://head:8265 has no agent yet; waiting" in asked[1]


def test_another_error_is_not_waited_for() -> None:
    with pytest.raises(UserError, match="did not do it: no such job") as caught:
        jobs._answered("http://head:8265", lambda: (_ for _ in ()).throw(ValueError("no such job")))
    assert "52365" not in str(caught.value)
