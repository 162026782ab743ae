"""Laws of retrying, for every policy that can be made."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from edda_engine.core.retrying import GiveUp, RetryAfter, RetryPolicy, decide
from edda_engine.errors import TerminalError

intervals = st.floats(0, 1000)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.none() | st.integers(1, 40),
    initial_interval=intervals,
    backoff_coefficient=st.floats(1, 20),
    max_interval=intervals,
    max_duration=st.none() | st.floats(0, 5000),
    jitter=st.floats(0, 1),
)
randoms = st.floats(0, 1, exclude_max=True)
attempts = st.integers(1, 10_000)


def run(policy: RetryPolicy, randoms: list[float], attempt_seconds: float) -> tuple[int, float, list[float]]:
    """Attempts made, time of the last one's start, and delays, when every attempt fails; at most len(randoms)."""
    elapsed, started, delays = 0.0, 0.0, []
    for attempt, random in enumerate(randoms, 1):
        started = elapsed
        elapsed += attempt_seconds
        decision = decide(policy, OSError(), attempt=attempt, elapsed_seconds=elapsed, random=random)
        if isinstance(decision, GiveUp):
            assert decision == GiveUp(attempt, exhausted=True)
            return attempt, started, delays
        assert decision.attempt == attempt + 1
        delays.append(decision.delay_seconds)
        elapsed += decision.delay_seconds
    return len(randoms), started, delays


@given(policies, attempts, randoms)
def test_a_delay_is_never_negative_and_never_above_max_interval(
    policy: RetryPolicy, attempt: int, random: float
) -> None:
    assert 0 <= policy.delay_after(attempt, random=random) <= policy.max_interval


@given(policies, attempts)
def test_delays_without_jitter_never_shrink(policy: RetryPolicy, attempt: int) -> None:
    assert policy.delay_after(attempt) <= policy.delay_after(attempt + 1)


@given(st.floats(0.001, 10), st.floats(1, 3), st.integers(1, 12))
def test_each_delay_is_the_one_before_times_the_coefficient(first: float, coefficient: float, attempt: int) -> None:
    policy = RetryPolicy(
        max_attempts=None, initial_interval=first, backoff_coefficient=coefficient, max_interval=1e9, max_duration=None
    )
    this, following = policy.delay_after(attempt), policy.delay_after(attempt + 1)
    assert abs(following - this * coefficient) <= 1e-9 * following


@given(policies, attempts, randoms)
def test_jitter_shortens_by_at_most_its_fraction(policy: RetryPolicy, attempt: int, random: float) -> None:
    full = policy.delay_after(attempt)
    shortened = policy.delay_after(attempt, random=random)
    assert full * (1 - policy.jitter) - 1e-9 <= shortened <= full


@given(policies, st.lists(randoms, min_size=60, max_size=60), st.floats(0, 100))
def test_attempts_are_bounded_by_max_attempts(
    policy: RetryPolicy, randoms: list[float], attempt_seconds: float
) -> None:
    made, _, delays = run(policy, randoms, attempt_seconds)
    assert policy.max_attempts is None or made <= policy.max_attempts
    assert len(delays) == made or len(delays) == made - 1


@given(policies, st.lists(randoms, min_size=60, max_size=60), st.floats(0, 100))
def test_no_attempt_but_the_first_starts_after_max_duration(
    policy: RetryPolicy, randoms: list[float], attempt_seconds: float
) -> None:
    _, started, _ = run(policy, randoms, attempt_seconds)
    assert policy.max_duration is None or started <= policy.max_duration + 1e-6


@given(policies, attempts, st.floats(0, 10_000), randoms)
def test_the_same_inputs_decide_the_same(policy: RetryPolicy, attempt: int, elapsed: float, random: float) -> None:
    first, second = (
        decide(policy, OSError(), attempt=attempt, elapsed_seconds=elapsed, random=random) for _ in range(2)
    )
    assert first == second


@given(policies, attempts, st.floats(0, 10_000), randoms)
def test_giving_up_is_final_whatever_comes_later(
    policy: RetryPolicy, attempt: int, elapsed: float, random: float
) -> None:
    decision = decide(policy, OSError(), attempt=attempt, elapsed_seconds=elapsed, random=0.0)
    assume(isinstance(decision, GiveUp))
    later = decide(policy, OSError(), attempt=attempt + 1, elapsed_seconds=elapsed + 1, random=0.0)
    assert isinstance(later, GiveUp)


@given(policies, attempts, st.floats(0, 10_000), randoms)
def test_a_terminal_error_is_never_tried_again(
    policy: RetryPolicy, attempt: int, elapsed: float, random: float
) -> None:
    decision = decide(policy, TerminalError(), attempt=attempt, elapsed_seconds=elapsed, random=random)
    assert decision == GiveUp(attempt, exhausted=False)


@given(attempts, st.floats(0, 1e9), randoms)
def test_a_policy_without_limits_always_tries_again(attempt: int, elapsed: float, random: float) -> None:
    policy = RetryPolicy(max_attempts=None, max_duration=None)
    assert isinstance(decide(policy, OSError(), attempt=attempt, elapsed_seconds=elapsed, random=random), RetryAfter)
