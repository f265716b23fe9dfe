"""A group member on Kafka when something fails: a member that is killed or too slow, a broker that goes away."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError
from kafka_road import KafkaRoad, until
from kafka_server import KafkaServer
from log_contract import OPENED, PARTITIONS, WAIT_SECONDS, Member, numbered, numbers
from log_contract_groups import shared
from log_contract_tail import following, tail

from outbox.errors import ConfigurationError, Retryable, Unreachable
from relay.logs.contract import Partition
from relay.logs.kafka.membership import Membership


@pytest.fixture
def road(kafka_url: str) -> KafkaRoad:
    return KafkaRoad(kafka_url)


@pytest.fixture
def own_road(own_kafka_server: KafkaServer) -> KafkaRoad:
    return KafkaRoad(own_kafka_server.url())


@pytest.fixture(autouse=True)
def everything_closed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Close what a test opened, before its broker goes away."""
    request.getfixturevalue("own_road" if "own_road" in request.fixturenames else "road")
    yield
    while OPENED:
        OPENED.pop().close()


def test_a_member_that_was_too_slow_is_told_and_joins_again(road: KafkaRoad):
    road.put(numbered(40, key=None))
    slow = Member(road.open("?session.timeout.ms=6000&max.poll.interval.ms=6000"), "orders").joined()
    had = slow.consumer.assignment()
    other = Member(road.open(), "orders").joined()
    assert other.consumer.assignment() == had

    def told() -> set[Partition]:
        return {one for gone in slow.told.revocations for one in gone}

    slow.until(lambda: told() == had, "it is told")
    shared(slow, other)
    assert len(slow.consumer.assignment() or ()) == PARTITIONS // 2


def test_a_static_member_whose_place_is_taken_says_so_and_leaves_it(road: KafkaRoad):
    """Two processes were given one `group.instance.id`. Joining again, they would take the place from each other."""
    road.put(numbered(40, key=None))
    static = f"?group.instance.id={road.prefix}one"
    first = Member(road.open(static), "orders").read(40)
    second = Member(road.open(static), "orders")

    def is_told() -> bool:
        second.poll(0.1)
        first.poll(0.1)
        return False

    with pytest.raises(ConfigurationError, match=r"another member has our group\.instance\.id .*one of its own"):
        until(is_told, "it is told")
    assert first.consumer.assignment() is None
    assert {one for gone in first.told.revocations for one in gone} == {batch.partition for batch in first.batches}
    second.read(40).joined()


def test_a_client_that_has_given_up_is_replaced(road: KafkaRoad, monkeypatch: pytest.MonkeyPatch):
    """INVARIANT I8: such a client goes on answering, with nothing, for ever."""
    road.put(numbered(40, key=None))
    member = Member(road.open(), "orders").read(40)
    dead: Any = SimpleNamespace(
        topic=lambda: None, partition=lambda: None, error=lambda: KafkaError(KafkaError._FATAL, "no more")
    )
    with monkeypatch.context() as patched, pytest.raises(Retryable, match="no more; it is joined again"):
        patched.setattr(Membership, "fetch", lambda *_, **__: [dead])
        member.poll(WAIT_SECONDS)
    assert member.consumer.assignment() is None
    member.batches.clear()
    assert sorted(numbers(member.read(40).records())) == list(range(40))
    member.joined()


MEMBER = """
    import sys, time
    from relay.logs import open_log

    class Anything:
        def assigned(self, partitions):
            return dict.fromkeys(partitions, 0)
        def revoked(self, partitions):
            pass

    consumer = open_log(sys.argv[1]).consumer(sys.argv[2], [sys.argv[3]], Anything())
    while True:
        consumer.poll(0.1)
        if consumer.assignment():
            print("joined", flush=True)
"""


def test_a_member_that_is_killed_is_succeeded_when_its_session_ends(road: KafkaRoad):
    road.put(numbered(40, key=None))
    url = f"{road.url}?session.timeout.ms=6000"
    killed = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(MEMBER), url, road.prefix + "g", road.prefix + "orders"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"joined\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    heir = Member(road.open(), "orders")
    assert sorted(numbers(heir.read(40).records())) == list(range(40))
    heir.joined()


def test_a_broker_that_goes_away_is_said_and_read_on_from_when_it_is_back(
    own_road: KafkaRoad, own_kafka_server: KafkaServer
):
    own_road.put(numbered(10))
    # A start of the broker may take longer than a session usually lasts.
    member = Member(own_road.open("?session.timeout.ms=60000"), "orders").read(10).joined()
    ends = {batch.partition: batch.end for batch in member.batches}
    own_kafka_server.kill()
    member.consumer.commit(ends)
    for _ in range(3):
        with pytest.raises(Unreachable, match=r"reading for group 'g': no broker answers; .*127\.0\.0\.1"):
            member.until(lambda: False, "it says so")
    own_kafka_server.start()
    own_road.put(numbered(10, begin=10))
    deadline = time.monotonic() + WAIT_SECONDS
    while len(member.records()) < 20:
        assert time.monotonic() < deadline
        try:
            member.poll(0.1)
        except Unreachable:
            continue
    assert numbers(member.records()) == list(range(20))
    assert member.told.revocations == [], "a member stays one while the broker is away for a moment"
    member.consumer.close()
    assert own_road.open().committed("g").items() >= ends.items()


def test_closing_while_no_broker_answers_does_not_last(own_road: KafkaRoad, own_kafka_server: KafkaServer):
    own_road.put(numbered(10))
    member = Member(own_road.open(), "orders").read(10).joined()
    member.consumer.commit({batch.partition: batch.end for batch in member.batches})
    own_kafka_server.kill()
    with pytest.raises(Unreachable):
        member.until(lambda: False, "it says so")
    begun = time.monotonic()
    member.consumer.close()
    assert time.monotonic() - begun < 3


def test_a_member_joins_when_the_broker_comes(own_road: KafkaRoad, own_kafka_server: KafkaServer):
    own_road.put(numbered(3))
    own_kafka_server.kill()
    member = Member(own_road.open(), "orders")
    with pytest.raises(Unreachable):
        member.until(lambda: False, "it says so")
    assert member.consumer.assignment() is None
    own_kafka_server.start()
    deadline = time.monotonic() + WAIT_SECONDS
    while len(member.records()) < 3:
        assert time.monotonic() < deadline
        try:
            member.poll(0.1)
        except Unreachable:
            continue
    assert numbers(member.records()) == [0, 1, 2]


def test_a_tail_without_a_broker_ends_with_words(own_road: KafkaRoad, own_kafka_server: KafkaServer):
    own_road.put(numbered(1))
    records = tail(own_road.open(), "orders", from_start=True, follow=True)
    following(records, 1)
    own_kafka_server.kill()
    with pytest.raises(Unreachable, match="no broker answers"):
        until(lambda: next(records) is not None, "it says so")
