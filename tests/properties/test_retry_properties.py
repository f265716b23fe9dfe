from hypothesis import given
from hypothesis import strategies as st

from outbox import RetryPolicy

seconds = st.floats(0, 1e6)
policies = st.builds(
    RetryPolicy, attempts=st.integers(1, 50), first_seconds=seconds, factor=st.floats(1, 1e6), most_seconds=seconds
)


@given(policies, st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_within_its_ceiling_and_ends_with_the_attempts(policy: RetryPolicy, attempt: int, number: float):
    delay = policy.delay(attempt, lambda: number)
    assert (delay is None) == (attempt >= policy.attempts)
    assert delay is None or 0 <= delay <= policy.ceiling(attempt) <= policy.most_seconds


@given(policies, st.integers(1, 100))
def test_the_ceiling_never_shrinks(policy: RetryPolicy, attempt: int):
    assert policy.ceiling(attempt) <= policy.ceiling(attempt + 1)
