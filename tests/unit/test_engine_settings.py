"""Settings as they are written down: in Python, in JSON, in the environment."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from edda_engine import RetryPolicy, TerminalError
from edda_engine.settings import EngineSettings
from edda_wsgi.settings import FlaskSettings


def test_a_retry_policy_in_settings_names_its_error_types() -> None:
    given = {"max_attempts": None, "non_retryable_error_types": ["ValueError", "edda_engine.TerminalError"]}
    settings = EngineSettings(default_retry_policy=given)  # type: ignore[arg-type]
    assert settings.default_retry_policy == RetryPolicy(
        max_attempts=None, max_duration=None, non_retryable_error_types=(ValueError, TerminalError)
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_attempt": 3}, "'max_attempt' in a RetryPolicy. Did you mean max_attempts?"),
        ({"max_attempts": "3"}, "it must be a whole number"),
        ({"retryable_error_types": "shop.no_such.Error"}, "'shop.no_such.Error' cannot be imported"),
    ],
)
def test_a_retry_policy_in_settings_that_makes_no_sense_is_refused_saying_why(given: object, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EngineSettings(default_retry_policy=given)  # type: ignore[arg-type]
    assert sentence in caught.value.errors()[0]["msg"]


def test_one_module_or_one_hook_need_not_be_in_a_list() -> None:
    assert FlaskSettings(workflows="shop.workflows", hooks="shop.Hooks") == FlaskSettings(  # type: ignore[arg-type]
        workflows=("shop.workflows",), hooks=("shop.Hooks",)
    )
