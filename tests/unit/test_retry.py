import random

import pytest

from outbox import ConfigurationError, RetryPolicy


def always_most() -> float:
    return 1.0


def test_delays_double_up_to_the_most_and_then_it_gives_up():
    policy = RetryPolicy(attempts=9)
    delays = [policy.delay(attempt, always_most) for attempt in range(1, 11)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, None, None]


def test_five_attempts_unless_told_otherwise():
    assert [RetryPolicy().delay(attempt, always_most) is None for attempt in (4, 5)] == [False, True]


def test_full_jitter_spreads_delays_over_the_whole_range():
    generator = random.Random(1)
    delays = [RetryPolicy().delay(4, generator.random) or 0 for _ in range(1000)]
    assert min(delays) < 0.1 and max(delays) > 3.9 and 1.8 < sum(delays) / len(delays) < 2.2


def test_one_attempt_is_never_repeated():
    assert RetryPolicy(attempts=1).delay(1, always_most) is None


def test_an_attempt_so_late_that_the_power_overflows_waits_the_most():
    assert RetryPolicy(attempts=10**9).delay(10**6, always_most) == 30


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"factor": 0.5}, {"first_seconds": -1}, {"most_seconds": -1}, {"most_seconds": float("nan")}],
)
def test_a_policy_that_makes_no_sense_is_a_configuration_error(wrong: dict[str, float]):
    with pytest.raises(ConfigurationError):
        RetryPolicy(**wrong)
