"""Durations and seconds as people write them."""

from datetime import timedelta

import pytest

from outbox.errors import ConfigurationError
from outbox.process.durations import parse_duration, parse_seconds


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
