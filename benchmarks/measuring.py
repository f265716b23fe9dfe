"""Samples taken in turns, and what they are compared by.

Two sides never run at the same time and always in turns, A B A B: what else the machine does falls on both. A ratio is
the median of the ratios of the rounds, and its spread is the quartiles around it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run gave.

    Attributes:
        seconds: by the clock on the wall.
        amount: of messages, or of transactions.
        cpu_seconds: of the process that is measured.
        server_seconds: CPU of all processes of the servers meanwhile.
        peak_bytes: of the process that is measured.
        resident_bytes: memory of that process, over time.
    """

    seconds: float
    amount: int
    cpu_seconds: float = 0.0
    server_seconds: float = 0.0
    peak_bytes: int = 0
    resident_bytes: tuple[int, ...] = ()

    @property
    def rate(self) -> float:
        """Return messages a second."""
        return self.amount / self.seconds


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        number: which bar of the design, as `P7`.
        what: was measured.
        figure: ours, as a person reads it.
        limit: what it is measured against, likewise.
        ratio: the median of the rounds; None where the bar is none on a ratio.
        spread: the quartiles of the ratio.
        bar: in words; empty where there is none.
        reached: None where there is no bar.
        notes: CPU, memory and the like.
    """

    number: str
    what: str
    figure: str
    limit: str = ""
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    bar: str = ""
    reached: bool | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


Take = Callable[[], Sample]


def in_turns(sides: Mapping[str, Take], rounds: int) -> dict[str, list[Sample]]:
    """Take one sample of each side a round; every second round begins at the other end."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            samples[name].append(sides[name]())
    return samples


def middle(values: list[float]) -> tuple[float, tuple[float, float]]:
    """Return the median, and the quartiles around it."""
    if len(values) < 2:  # noqa: PLR2004 - quartiles need two
        return values[0], (values[0], values[0])
    low, _, high = quantiles(values, n=4, method="inclusive")
    return median(values), (low, high)


def ratios(ours: list[Sample], limit: list[Sample], of: Callable[[Sample], float]) -> list[float]:
    """Return ours to the limit's, round by round."""
    return [of(one) / of(other) for one, other in zip(ours, limit, strict=True)]


def rate_row(
    number: str, what: str, ours: list[Sample], limit: list[Sample], *, bar: float | None, limit_is: str = ""
) -> Row:
    """Return the row of a rate that must not be lower than `bar` times the limit's."""
    ratio, spread = middle(ratios(ours, limit, lambda sample: sample.rate))
    return Row(
        number,
        what,
        f"{median(one.rate for one in ours):,.0f}/s",
        f"{median(one.rate for one in limit):,.0f}/s{limit_is and f' ({limit_is})'}",
        ratio,
        spread,
        "" if bar is None else f">= {bar:g}",
        None if bar is None else ratio >= bar,
        {**costs("ours", ours), **costs("limit", limit), "ratio of all CPU": f"{_of_all_cpu(ours, limit):.2f}"},
    )


def _of_all_cpu(ours: list[Sample], limit: list[Sample]) -> float:
    """Return how much less CPU ours takes, server and client together: on a busy machine the steadier of the two."""
    return middle(ratios(limit, ours, lambda sample: (sample.cpu_seconds + sample.server_seconds) / sample.amount))[0]


def costs(whose: str, samples: list[Sample]) -> dict[str, str]:
    """Return CPU seconds a million, and peak memory."""
    said = {
        f"{whose}, CPU s a million": f"{median(one.cpu_seconds / one.amount for one in samples) * 1e6:.1f}",
        f"{whose}, servers'": f"{median(one.server_seconds / one.amount for one in samples) * 1e6:.1f}",
    }
    peak = max(one.peak_bytes for one in samples)
    return {**said, f"{whose}, peak MB": f"{peak / 1e6:.0f}"} if peak else said
