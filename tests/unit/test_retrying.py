"""What follows a failed attempt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edda_engine.core.retrying import GiveUp, RetryAfter, RetryPolicy, decide
from edda_engine.errors import ActivityTimeoutError, ConfigurationError, PayloadError, TerminalError
from edda_engine.retry import AGGRESSIVE_RETRY, CONSERVATIVE_RETRY, DEFAULT_RETRY, INFINITE_RETRY

NAN, INFINITY = float("nan"), float("inf")


def delays_of(policy: RetryPolicy, *, at_most: int = 100, each_attempt_takes: float = 0.0) -> list[float]:
    """The delays between attempts that fail one after another until the policy gives up."""
    delays: list[float] = []
    elapsed = each_attempt_takes
    for attempt in range(1, at_most + 1):
        decision = decide(policy, OSError("down"), attempt=attempt, elapsed_seconds=elapsed, random=0.0)
        if isinstance(decision, GiveUp):
            assert decision == GiveUp(attempt, exhausted=True)
            break
        assert decision.attempt == attempt + 1
        delays.append(decision.delay_seconds)
        elapsed += decision.delay_seconds + each_attempt_takes
    return delays


def test_the_default_is_five_attempts_one_two_four_and_eight_seconds_apart() -> None:
    assert delays_of(DEFAULT_RETRY) == [1.0, 2.0, 4.0, 8.0]


def test_a_policy_without_arguments_is_the_default() -> None:
    assert RetryPolicy() == DEFAULT_RETRY


def test_the_aggressive_policy_makes_ten_attempts_from_a_tenth_of_a_second_within_a_minute() -> None:
    assert delays_of(AGGRESSIVE_RETRY) == pytest.approx([0.1 * 1.5**n for n in range(9)])
    assert AGGRESSIVE_RETRY.max_attempts == 10
    assert AGGRESSIVE_RETRY.initial_interval == 0.1
    assert AGGRESSIVE_RETRY.max_duration == 60.0


def test_the_aggressive_policy_stops_after_a_minute_when_attempts_are_slow() -> None:
    assert len(delays_of(AGGRESSIVE_RETRY, each_attempt_takes=20.0)) == 2


def test_the_conservative_policy_makes_three_attempts_from_five_seconds_within_a_quarter_of_an_hour() -> None:
    assert delays_of(CONSERVATIVE_RETRY) == [5.0, 10.0]
    assert CONSERVATIVE_RETRY.max_attempts == 3
    assert CONSERVATIVE_RETRY.initial_interval == 5.0
    assert CONSERVATIVE_RETRY.max_duration == 900.0


def test_the_infinite_policy_never_gives_up_and_waits_at_most_a_minute() -> None:
    delays = delays_of(INFINITE_RETRY, at_most=2000)
    assert delays[:8] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert len(delays) == 2000
    assert set(delays[6:]) == {60.0}


def test_delays_are_capped_by_max_interval() -> None:
    policy = RetryPolicy(
        max_attempts=6, initial_interval=2.0, backoff_coefficient=3.0, max_interval=10.0, max_duration=None
    )
    assert delays_of(policy) == [2.0, 6.0, 10.0, 10.0, 10.0]


def test_a_first_interval_above_the_cap_is_capped_too() -> None:
    assert delays_of(RetryPolicy(max_attempts=2, initial_interval=90.0, max_interval=10.0)) == [10.0]


def test_an_interval_of_zero_tries_again_at_once() -> None:
    assert delays_of(RetryPolicy(max_attempts=4, initial_interval=0.0)) == [0.0, 0.0, 0.0]


def test_one_attempt_means_no_second_one() -> None:
    decision = decide(RetryPolicy(max_attempts=1), OSError(), attempt=1, elapsed_seconds=0.0, random=0.0)
    assert decision == GiveUp(1, exhausted=True)


def test_attempts_made_before_a_crash_count() -> None:
    decision = decide(DEFAULT_RETRY, OSError(), attempt=5, elapsed_seconds=15.0, random=0.0)
    assert decision == GiveUp(5, exhausted=True)


def test_no_attempt_starts_later_than_max_duration_after_the_first() -> None:
    policy = RetryPolicy(max_attempts=None, max_duration=10.0)
    at_the_limit = decide(policy, OSError(), attempt=3, elapsed_seconds=6.0, random=0.0)
    beyond_it = decide(policy, OSError(), attempt=3, elapsed_seconds=6.001, random=0.0)
    assert (at_the_limit, beyond_it) == (RetryAfter(4, 4.0), GiveUp(3, exhausted=True))


def test_a_duration_of_zero_allows_one_attempt_unless_the_next_is_immediate() -> None:
    decision = decide(RetryPolicy(max_duration=0.0), OSError(), attempt=1, elapsed_seconds=0.0, random=0.0)
    assert decision == GiveUp(1, exhausted=True)


@pytest.mark.parametrize(
    ("jitter", "random", "delay"),
    [(0.0, 0.9, 4.0), (0.5, 0.0, 4.0), (0.5, 0.5, 3.0), (1.0, 0.25, 3.0), (1.0, 1.0, 0.0)],
)
def test_jitter_shortens_a_delay_by_its_fraction_of_the_random_number(
    jitter: float, random: float, delay: float
) -> None:
    policy = RetryPolicy(jitter=jitter)
    assert decide(policy, OSError(), attempt=3, elapsed_seconds=0.0, random=random) == RetryAfter(4, delay)


@pytest.mark.parametrize("attempt", [1100, 100_000, 10**9])
def test_very_many_attempts_do_not_overflow(attempt: int) -> None:
    assert INFINITE_RETRY.delay_after(attempt) == 60.0


# Which errors.


@pytest.mark.parametrize("error", [TerminalError("no"), PayloadError("activity 'a'", "$", "is bad")])
def test_errors_that_another_try_cannot_mend_give_up_at_once_and_are_not_called_exhausted(error: Exception) -> None:
    assert decide(INFINITE_RETRY, error, attempt=1, elapsed_seconds=0.0, random=0.0) == GiveUp(1, exhausted=False)


def test_a_subclass_of_terminal_error_is_terminal() -> None:
    class CardRefused(TerminalError):
        pass

    assert decide(DEFAULT_RETRY, CardRefused(), attempt=2, elapsed_seconds=1.0, random=0.0) == GiveUp(
        2, exhausted=False
    )


def test_a_terminal_error_is_terminal_even_when_named_retryable() -> None:
    assert not RetryPolicy(retryable_error_types=[TerminalError]).allows(TerminalError())


def test_only_retryable_types_and_their_subclasses_are_tried_again_when_given() -> None:
    policy = RetryPolicy(retryable_error_types=[OSError])
    assert [policy.allows(error) for error in (OSError(), ConnectionError(), ValueError())] == [True, True, False]


def test_non_retryable_types_and_their_subclasses_are_never_tried_again() -> None:
    policy = RetryPolicy(non_retryable_error_types=(ValueError,))
    assert [policy.allows(error) for error in (ValueError(), UnicodeError(), OSError())] == [False, False, True]


def test_non_retryable_wins_over_retryable() -> None:
    policy = RetryPolicy(retryable_error_types=(OSError,), non_retryable_error_types=(FileNotFoundError,))
    assert [policy.allows(error) for error in (OSError(), FileNotFoundError())] == [True, False]


def test_an_empty_list_of_retryable_types_allows_nothing() -> None:
    assert not RetryPolicy(retryable_error_types=[]).allows(OSError())


def test_a_timeout_of_an_attempt_is_tried_again() -> None:
    late = ActivityTimeoutError("fetch", 5.0)
    assert decide(DEFAULT_RETRY, late, attempt=1, elapsed_seconds=5.0, random=0.0) == RetryAfter(2, 1.0)


@pytest.mark.parametrize("given", [ValueError, "ValueError", ["ValueError"], (ValueError,)])
def test_error_types_are_given_as_one_class_or_several_or_by_name(given: Any) -> None:
    assert RetryPolicy(non_retryable_error_types=given).non_retryable_error_types == (ValueError,)
    assert RetryPolicy(retryable_error_types=given).retryable_error_types == (ValueError,)


def test_error_types_of_modules_are_given_by_their_dotted_path() -> None:
    policy = RetryPolicy(
        non_retryable_error_types=["edda_engine.errors.TerminalError", "json.JSONDecodeError", OSError]
    )
    assert policy.non_retryable_error_types == (TerminalError, json.JSONDecodeError, OSError)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            "NoSuchError",
            r"'NoSuchError' cannot be imported \(AttributeError.*Give an exception class, or its dotted path",
        ),
        ("no_such_module.Error", r"'no_such_module.Error' cannot be imported \(ModuleNotFoundError"),
        ("edda_engine.errors.Nothing", "cannot be imported"),
        (["print"], "give an exception class or several"),
        (int, "give an exception class or several"),
        ([ValueError()], "give an exception class or several"),
        (7, "give an exception class or several"),
        (None, "give an exception class or several"),
    ],
)
def test_what_is_no_error_type_is_refused_when_the_policy_is_made(given: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"RetryPolicy\(non_retryable_error_types=.*{sentence}"):
        RetryPolicy(non_retryable_error_types=given)


# Limits that follow from each other.


def test_a_policy_without_limit_of_attempts_has_no_limit_of_time_unless_it_is_given() -> None:
    assert RetryPolicy(max_attempts=None).max_duration is None
    assert RetryPolicy(max_attempts=None, max_duration=300.0).max_duration == 300.0
    assert type(RetryPolicy().max_duration) is float
    assert RetryPolicy().max_duration == 300.0


# Bad policies.


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("max_attempts", [0, -3, "3", 2.0, True], "a whole number, at least 1, or None"),
        ("initial_interval", [-0.1, NAN, INFINITY, "1", None, True], "a number of seconds, at least 0"),
        ("backoff_coefficient", [0.5, NAN, INFINITY, "2"], "a number, at least 1"),
        ("max_interval", [-1.0, NAN, INFINITY, "60"], "a number of seconds, at least 0"),
        ("max_duration", [-1.0, NAN, INFINITY, "300"], "a number of seconds, at least 0, or None"),
        ("jitter", [1.5, -0.1, NAN, "0"], "a number from 0 to 1"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_when_it_is_made(
    name: str, values: list[object], sentence: str
) -> None:
    for value in values:
        with pytest.raises(ConfigurationError) as caught:
            RetryPolicy(**{name: value})  # type: ignore[arg-type]
        assert str(caught.value) == f"RetryPolicy({name}={value!r}): it must be {sentence}."
