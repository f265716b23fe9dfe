"""Whom the brokers' answers come from when the one that was asked is gone, and an answer that names no broker."""

import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from outbox.errors import Unreachable
from relay.logs.contract import Partition
from relay.logs.kafka import admin as admins
from relay.logs.kafka.address import Address
from relay.logs.kafka.admin import Admin, Admins
from relay.logs.kafka.cluster import Cluster
from relay.logs.worker import done

API_VERSIONS, METADATA = 18, 3
PARTITIONS = [Partition("orders", "an id", number) for number in range(3)]
NOW = datetime(2026, 1, 2, tzinfo=UTC)
UNKNOWN_TOPIC = 3
ADDRESS = Address("127.0.0.1:1", {})


class Asked:
    """What is asked of clients, and which of them answer."""

    def __init__(self, *answers: bool) -> None:
        self._answers = list(answers)
        self.clients: list[Admin] = []

    def __call__(self, admin: Admin) -> str:
        self.clients.append(admin)
        if not self._answers.pop(0):
            raise Unreachable("no answer")
        admin.has_answered = True
        return "answer"


def test_where_a_client_that_brought_answers_brings_none_another_is_asked():
    """A client goes on asking a controller that is dead; a fresh one asks whoever is there."""
    asked, clients = Asked(True, False, True, True), Admins(ADDRESS)
    assert [clients.asked(asked) for _ in range(3)] == ["answer"] * 3
    first, again, other, after = asked.clients
    assert first is again
    assert other is after
    assert first is not other


def test_where_a_fresh_client_gets_no_answer_there_is_none_and_the_next_question_is_anothers():
    asked, clients = Asked(False, True), Admins(ADDRESS)
    with pytest.raises(Unreachable):
        clients.asked(asked)
    assert clients.asked(asked) == "answer"
    first, other = asked.clients
    assert first is not other


def test_two_threads_that_miss_an_answer_make_one_client_between_them():
    clients = Admins(ADDRESS)
    lost = clients.newest
    clients.renew(lost)
    fresh = clients.newest
    clients.renew(lost)
    assert clients.newest is fresh


class Leaders:
    """A client that brings what the leaders of partitions say, by their numbers; an error it brings for all."""

    def __init__(self, *offsets: int, error: int | None = None) -> None:
        self._offsets = offsets
        self._error = error

    def list_offsets(self, asked: Iterable[TopicPartition], **_: Any) -> dict[TopicPartition, "Future[Any]"]:
        if self._error is not None:
            return {part: failed(KafkaException(KafkaError(self._error))) for part in asked}
        return {part: done(lambda part=part: SimpleNamespace(offset=self._offsets[part.partition])) for part in asked}


def failed(error: Exception) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def cluster_of(monkeypatch: pytest.MonkeyPatch, leaders: Leaders) -> Cluster:
    monkeypatch.setattr(admins, "made", lambda *_: leaders)
    return Cluster(ADDRESS)


@pytest.mark.parametrize("nothing", [OFFSET_INVALID, -1])
def test_a_leader_that_has_not_answered_is_no_answer(monkeypatch: pytest.MonkeyPatch, nothing: int):
    """INVARIANT I8: of a leader that goes away the client brings no error; a member took the end of its partition for
    one far below where it stood, said that the log had lost records, and ended."""
    cluster = cluster_of(monkeypatch, Leaders(5, nothing, 7))
    with pytest.raises(Unreachable, match="what 'orders' holds: the leader of partition 1 has not answered"):
        cluster.bounds(PARTITIONS)


def test_a_leader_that_has_not_answered_is_no_partition_without_records_since(monkeypatch: pytest.MonkeyPatch):
    cluster = cluster_of(monkeypatch, Leaders(5, OFFSET_INVALID, 7))
    with pytest.raises(Unreachable, match="the leader of partition 1 has not answered"):
        cluster.offsets_at(PARTITIONS, NOW)


def test_a_client_that_asks_by_the_leader_before_is_not_asked_again(monkeypatch: pytest.MonkeyPatch):
    """INVARIANT I8: it goes on so for a minute and more, and no member could begin."""
    clients = [Leaders(5, 6, 7), Leaders(error=KafkaError.FENCED_LEADER_EPOCH), Leaders(5, 6, 8)]
    monkeypatch.setattr(admins, "made", lambda *_: clients.pop(0))
    cluster = Cluster(ADDRESS)
    assert cluster.bounds(PARTITIONS)[PARTITIONS[2]].end == 7
    cluster._admins.newest.client = clients.pop(0)
    assert cluster.bounds(PARTITIONS)[PARTITIONS[2]].end == 8


class BareBroker:
    """Speaks as much of Kafka's protocol as a client needs to ask who is there, by the oldest versions.

    Attributes:
        is_alive: whether it says so itself.
    """

    def __init__(self) -> None:
        self.is_alive = True
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # until it is closed
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rwb") as stream:  # the client may go at any moment
            while size := stream.read(4):
                request = stream.read(*struct.unpack(">i", size))
                kind, version, correlation, name = struct.unpack_from(">hhih", request)
                answer = (
                    self._versions(version) if kind == API_VERSIONS else self._metadata(request[10 + max(name, 0) :])
                )
                stream.write(struct.pack(">ii", 4 + len(answer), correlation) + answer)
                stream.flush()

    def _versions(self, version: int) -> bytes:
        """The versions that it knows, by version 0 of this request; another one is refused."""
        known = [(API_VERSIONS, 0, 0), (METADATA, 4, 4)]
        refused = 35 if version else 0
        return struct.pack(">hi", refused, len(known)) + b"".join(struct.pack(">hhh", *one) for one in known)

    def _metadata(self, asked: bytes) -> bytes:
        """Version 4: who is alive, the cluster's id, the controller; and that the topics do not exist."""
        brokers = [struct.pack(">i", 1) + text("127.0.0.1") + struct.pack(">ih", self.port, -1)]
        brokers = brokers if self.is_alive else []
        (count,) = struct.unpack_from(">i", asked)
        place, topics = 4, []
        for _ in range(max(count, 0)):
            (length,) = struct.unpack_from(">h", asked, place)
            name = asked[place + 2 : place + 2 + length].decode()
            place += 2 + length
            topics.append(struct.pack(">h", UNKNOWN_TOPIC) + text(name) + struct.pack(">bi", 0, 0))
        head = struct.pack(">ii", 0, len(brokers)) + b"".join(brokers) + text("the-cluster")
        return head + struct.pack(">ii", 1, len(topics)) + b"".join(topics)

    def close(self) -> None:
        self._listening.close()


def text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


@pytest.fixture
def broker() -> Iterator[BareBroker]:
    made = BareBroker()
    yield made
    made.close()


def test_a_broker_that_knows_no_live_broker_says_its_cluster_and_the_process_lives(broker: BareBroker):
    """INVARIANT I8: so answers a broker that hung until the others called it gone, until they know it again.

    librdkafka's newer question ends the process there, by a failed assertion.
    """
    cluster = Cluster(Address(f"127.0.0.1:{broker.port}", {}))
    assert cluster.identity() == "the-cluster"
    broker.is_alive = False
    assert cluster.identity() == "the-cluster"


def test_a_broker_that_does_not_answer_is_waited_for_no_longer_than_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admins, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(admins, "METADATA_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cluster = Cluster(Address(f"127.0.0.1:{silent.getsockname()[1]}", {}))
        with pytest.raises(Unreachable, match="asking who the brokers are: no broker answers"):
            cluster.identity()
