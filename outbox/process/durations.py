"""Durations as people write them: `30s`, `15m`, `12h`, `7d`."""

import re
from datetime import timedelta

from outbox.errors import ConfigurationError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd])")
_NAMES = (("d", 86400), ("h", 3600), ("m", 60))
SHORTEST_RETENTION = timedelta(seconds=1)
LONGEST_RETENTION = timedelta(days=36_500)
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


def parse_retention(text: str, option: str = "--retain") -> timedelta:
    """Return for how long something is to be kept.

    Raises:
        ConfigurationError: it is no duration; or none at all, or longer than a century.
    """
    if text.strip() in ("0", "0.0"):
        return checked_retention(timedelta(0), option)
    return checked_retention(parse_duration(text), option)


def checked_retention(retain: timedelta, option: str) -> timedelta:
    """Return a retention that somebody asked for, if it can be one.

    Raises:
        ConfigurationError: nothing would be kept, or for longer than a century.
    """
    if retain < SHORTEST_RETENTION:
        raise ConfigurationError(
            f"{option} {shown_duration(retain)} keeps nothing, and that is not offered: write 1s to delete almost at"
            " once what has been read; what nobody has read is kept, however short it is"
        )
    if retain > LONGEST_RETENTION:
        raise ConfigurationError(
            f"{option} {shown_duration(retain)} is longer than a century: write {LONGEST_RETENTION.days}d to keep"
            " everything"
        )
    return retain


def shown_duration(duration: timedelta) -> str:
    """Return a duration as people write it: `7d`, `12h`, `90m`, `0.5s`."""
    seconds = duration.total_seconds()
    for unit, length in _NAMES:
        if seconds and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"
