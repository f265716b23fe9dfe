from pathlib import Path

import pytest

from outbox.errors import ConfigurationError
from outbox.process.passwords import redacted, remember
from relay.logs import open_log
from relay.logs.kafka.address import Address, parse_address


def test_brokers_and_settings_come_from_the_url():
    found = parse_address("kafka://host:9092,host2?acks=all&compression.type=lz4&partitions=8&replication=3")
    assert found == Address("host:9092,host2", {"acks": "all", "compression.type": "lz4"}, 8, 3)
    assert parse_address("kafka://[::1]:9092,[::2]/").servers == "[::1]:9092,[::2]"


def test_user_and_password_are_those_of_sasl():
    found = parse_address("kafka://app:p%40ss@host?sasl.mechanism=PLAIN&security.protocol=sasl_ssl")
    assert found.settings == {
        "sasl.username": "app",
        "sasl.password": "p@ss",
        "sasl.mechanism": "PLAIN",
        "security.protocol": "sasl_ssl",
    }


def test_settings_come_from_a_file_and_the_url_beats_it(tmp_path: Path):
    file = tmp_path / "client.properties"
    file.write_text("# TLS\nsecurity.protocol=ssl\n\nssl.ca.location = /etc/ca.pem\nlinger.ms=1\n!old\n")
    found = parse_address(f"kafka://host?config={file}&linger.ms=20")
    assert found.settings == {"security.protocol": "ssl", "ssl.ca.location": "/etc/ca.pem", "linger.ms": "20"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("kafka://", "names no brokers: write kafka://host:9092"),
        ("kafka://host:port", "names no brokers"),
        ("kafka://host:0", "names no brokers"),
        ("kafka://host,", "names no brokers"),
        ("kafka://host/topic", "has a path, '/topic'"),
        ("kafka://host?acks", "cannot be read: write [?]name=value"),
        ("kafka://host?partitions=0", "partitions='0': write a whole number from 1 to"),
        ("kafka://host?replication=three", "replication='three'"),
        ("kafka://host?transactional.id=x", "'transactional.id' is not yours to set: it is the relay's own"),
        ("kafka://host?group.id=x", "'group.id' is not yours to set: it is the Inbox's name"),
        ("kafka://host?config=/nowhere/at.all", "config='/nowhere/at.all' cannot be read: No such file"),
    ],
)
def test_what_cannot_be_read_is_said_in_words(url: str, words: str):
    with pytest.raises(ConfigurationError, match=words):
        parse_address(url)


def test_a_line_that_is_no_setting_is_named_without_its_content(tmp_path: Path):
    file = tmp_path / "client.properties"
    file.write_text("linger.ms=1\nsasl.password hunter2\n")
    with pytest.raises(ConfigurationError, match=r"line 2 of the log's config=.* is not name=value") as caught:
        parse_address(f"kafka://host?config={file}")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "words"),
    [("no.such=1", "No such configuration property"), ("security.protocol=smoke", "security.protocol")],
)
def test_what_librdkafka_does_not_know_is_refused_when_the_log_is_opened(query: str, words: str):
    with pytest.raises(ConfigurationError, match=words):
        open_log(f"kafka://127.0.0.1:1?{query}")


@pytest.mark.parametrize("servers", ["host:9092", "host:9092,host2:9093"])
def test_the_secrets_of_a_url_are_hidden_wherever_they_turn_up(servers: str):
    remember(f"kafka://app:hunter2%21@{servers}?sasl.username=app&ssl.key.password=kkk999")
    assert redacted("app, hunter2!, hunter2%21 and kkk999") == "app, ***, *** and ***"
