"""Durations and seconds as people write them."""

from datetime import timedelta

import pytest

from outbox.errors import ConfigurationError
from outbox.process.durations import (
    checked_retention,
    parse_duration,
    parse_retention,
    parse_seconds,
    shown_duration,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", timedelta(seconds=30)),
        ("15m", timedelta(minutes=15)),
        ("12h", timedelta(hours=12)),
        ("7d", timedelta(days=7)),
        ("1.5h", timedelta(minutes=90)),
        (" 2d ", timedelta(days=2)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "7", "d", "-1s", "1 s", "1w", "1h30m", "infs", "1e3s", "٣s", "9999999999d"])
def test_what_is_no_duration_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no duration: write a number and a unit"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "expected"), [("10", 10.0), ("0.5", 0.5), ("0", 0.0), ("2m", 120.0)])
def test_seconds_are_plain_or_a_duration(text: str, expected: float) -> None:
    assert parse_seconds(text) == expected


@pytest.mark.parametrize("text", ["ten", "-1", "nan", "inf", "1e9", ""])
def test_what_is_no_number_of_seconds_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no number of seconds"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["1s", "8d", "0.5h", "36500d"])
def test_a_retention_is_a_duration_of_a_second_to_a_century(text: str) -> None:
    assert parse_retention(text) == parse_duration(text)


@pytest.mark.parametrize("text", ["0", "0s", "0d", "0.4s"])
def test_a_retention_of_nothing_is_refused_with_what_to_write_instead(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"keeps nothing, and that is not offered: write 1s"):
        parse_retention(text)


def test_a_retention_that_no_clock_can_count_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--retain 36501d is longer than a century: write 36500d"):
        parse_retention("36501d")
    with pytest.raises(ConfigurationError, match="longer than a century"):
        parse_retention("999999999d")


@pytest.mark.parametrize("text", ["7", "-1d", "week", ""])
def test_a_retention_without_a_unit_or_below_zero_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no duration: write a number and a unit"):
        parse_retention(text)


def test_a_negative_timedelta_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="keeps nothing"):
        checked_retention(timedelta(days=-1), "retain")


@pytest.mark.parametrize(
    ("duration", "shown"),
    [
        (timedelta(days=7), "7d"),
        (timedelta(hours=36), "36h"),
        (timedelta(minutes=90), "90m"),
        (timedelta(seconds=1.5), "1.5s"),
        (timedelta(0), "0s"),
    ],
)
def test_a_duration_is_shown_as_it_is_written(duration: timedelta, shown: str) -> None:
    assert shown_duration(duration) == shown
