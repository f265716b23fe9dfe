import pytest

from outbox.errors import ConfigurationError
from relay.topics import parse_topics


@pytest.mark.parametrize(
    ("text", "topic", "matches"),
    [
        ("*", "anything", True),
        ("orders", "orders", True),
        ("orders", "orders2", False),
        ("orders*", "orders2", True),
        ("orders*,bills", "bills", True),
        ("orders*,bills", "Bills", False),
        (" a , b ", "b", True),
    ],
)
def test_a_pattern_matches_whole_names_and_beginnings(text: str, topic: str, matches: bool):
    assert parse_topics(text).match(topic) is matches


def test_the_canonical_form_does_not_depend_on_order_or_repeats():
    assert parse_topics("b,a*,b").text == parse_topics("a*, b").text == "a*,b"
    assert parse_topics("a,*").text == "*"


@pytest.mark.parametrize("text", ["", ",", "a b", "a*b", "a\nb", "ä", "x" * 250])
def test_what_is_no_pattern_is_refused(text: str):
    with pytest.raises(ConfigurationError, match="--topics"):
        parse_topics(text)
