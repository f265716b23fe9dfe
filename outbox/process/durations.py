"""Durations as people write them: `30s`, `15m`, `12h`, `7d`."""

import re
from datetime import timedelta

from outbox.errors import ConfigurationError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd])")
_PLAIN = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?")


def parse_duration(text: str) -> timedelta:
    """Return the duration that `30s`, `15m`, `12h` or `7d` names.

    Raises:
        ConfigurationError: it is none of these.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(f"{text!r} is no duration: write a number and a unit, as in 30s, 15m, 12h or 7d")
    return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])


def parse_seconds(text: str) -> float:
    """Return a number of seconds, written plainly (`10`, `0.5`) or as a duration (`30s`, `15m`).

    Raises:
        ConfigurationError: it is neither, or negative.
    """
    plain = text.strip()
    if _PLAIN.fullmatch(plain):
        return float(plain)
    try:
        return parse_duration(plain).total_seconds()
    except ConfigurationError:
        raise ConfigurationError(
            f"{text!r} is no number of seconds: write 10 or 0.5, or a duration as in 30s, 15m, 12h, 7d"
        ) from None
