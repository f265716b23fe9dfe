"""When to try again: a pure function of the attempt and of the randomness that is passed in."""

from collections.abc import Callable
from dataclasses import dataclass

from outbox.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter.

    Attributes:
        attempts: how often something is tried in all, the first time included; at least 1.
        first_seconds: the most that is waited after the first attempt.
        factor: by how much that grows with each attempt; at least 1.
        most_seconds: what it never exceeds.
    """

    attempts: int = 5
    first_seconds: float = 0.5
    factor: float = 2
    most_seconds: float = 30

    def __post_init__(self) -> None:
        # Written so that a NaN is refused too.
        if not (self.attempts >= 1 and self.factor >= 1 and self.first_seconds >= 0 and self.most_seconds >= 0):
            raise ConfigurationError(f"{self}: attempts and factor are 1 or more, and seconds are not negative")

    def ceiling(self, attempt: int) -> float:
        """Return the most seconds that may be waited after attempt number `attempt`, the first being 1."""
        try:
            return min(self.most_seconds, self.first_seconds * float(self.factor) ** (attempt - 1))
        except OverflowError:
            return self.most_seconds

    def delay(self, attempt: int, random: Callable[[], float]) -> float | None:
        """Return how many seconds to wait after attempt number `attempt` failed, or None to give up.

        Args:
            attempt: how often it was tried, the first time being 1.
            random: returns a number from 0 up to, not including, 1; `random.random` will do.
        """
        if attempt >= self.attempts:
            return None
        # Full jitter: those who failed together do not come back together.
        return random() * self.ceiling(attempt)
