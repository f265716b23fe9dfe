"""Others on the same Kafka: what the CloudEvents SDK reads and writes, and what anybody else puts into a topic."""

import base64
import json
import select
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from acceptance.commands import User
from cloudevents.http import CloudEvent
from cloudevents.kafka import KafkaMessage, from_binary, to_binary
from confluent_kafka import Producer
from databases import install, rows, wait_until, write
from kafka_plain import Broker
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox
from inbox.status import status
from outbox import Outbox, correlate
from outbox.process.urls import parse_url, with_driver
from relay import Relay
from relay.logs.cloudevents import NAMESPACE

ID = "order 42/ü"
STORY = "story 7"


class Shared:
    """One topic of one partition on a shared broker, a group that handles it, and what its handler has seen.

    Attributes:
        seen: the deliveries, in order. They are noted before the transaction ends; no handler here fails.
    """

    def __init__(self, database: str, broker: Broker, folder: Path) -> None:
        self.database = install(database)
        self.broker = broker
        self.topic = broker.topic(partitions=1)
        self.group = f"g{uuid.uuid4().hex[:10]}"
        self.user = User(folder, self.database)
        self.seen: list[Delivery[Any]] = []
        self._producer = Producer({**broker.settings, "linger.ms": 0})

    def put(
        self,
        value: bytes | None,
        key: str | bytes | None = None,
        headers: Mapping[str, bytes | None] | Sequence[tuple[str, bytes | None]] = (),
    ) -> None:
        """Produce a record by a plain client."""
        pairs: Any = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        self._producer.produce(self.topic, value, key, headers=pairs)
        assert self._producer.flush(30) == 0

    def put_event(self, event: CloudEvent, **more: Any) -> None:
        """Produce what the SDK makes of an event."""
        made = to_binary(event, **more)
        self.put(made.value if isinstance(made.value, bytes) else made.value.encode(), made.key, made.headers)

    def event(self, payload: dict[str, Any], **attributes: str) -> CloudEvent:
        wanted = {"id": ID, "source": "/their/shop", "type": "Paid", "datacontenttype": "application/json"}
        return CloudEvent({**wanted, **attributes}, payload)

    def handle(self, concurrency: int = 1) -> list[Delivery[Any]]:
        """Run the group until all is handled; return what came."""
        inbox = Inbox(self.group)
        before = len(self.seen)

        @inbox.handler(self.topic)
        def handle(delivery: Delivery, session: Session) -> None:
            self.seen.append(delivery)

        inbox.run(self.database, self.broker.url, once=True, concurrency=concurrency)
        return self.seen[before:]

    def counts(self) -> tuple[int, int]:
        """Return handled and duplicates, when the group has no lag."""
        (one,) = status(self.database, log=self.broker.url)
        assert one.lag_messages == {self.topic: {0: 0}}
        return one.handled, one.duplicates

    def write(self, **message: Any) -> Any:
        """Write a message as an application does."""
        outbox = Outbox(source="/our/shop")
        engine = create_engine(with_driver(parse_url(self.database)).set(drivername="postgresql+psycopg"))
        with Session(engine) as session, session.begin():
            written = outbox.write(session, topic=self.topic, **message)
        engine.dispose()
        return written

    def relay(self, **settings: Any) -> None:
        Relay(self.database, self.broker.url, **settings).run(once=True)

    def raw(self) -> list[KafkaMessage]:
        """Return the topic's records as the SDK takes them."""
        found: list[Any] = self.broker.records(self.topic)
        return [
            KafkaMessage({name: value.encode() for name, value in one.headers.items()}, one.key, one.value)
            for one in found
        ]

    def tail(self, *options: str) -> list[dict[str, Any]]:
        ended = self.user.run("relay", "tail", self.topic, "--log", self.broker.url, "--json", *options)
        assert ended.code == 0, ended.talk
        assert ended.talk == ""
        return ended.lines()


@pytest.fixture
def shared(postgresql_url: str, kafka_url: str, tmp_path: Path) -> Iterator[Shared]:
    made = Shared(postgresql_url, Broker(kafka_url), tmp_path)
    yield made
    made.broker.delete(made.topic)


# The SDK


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_the_sdk_reads_our_records(shared: Shared, delivery: str):
    begun = datetime.now(UTC)
    with correlate(correlation_id=STORY, causation_id="cause"):
        written = shared.write(key="42", type="Placed", payload={"ü": [1, 2.5, None]}, headers={"tenant": "ä"})
    shared.relay(delivery=delivery)
    (raw,) = shared.raw()
    event = from_binary(raw)
    told = dict(event.get_attributes())
    happened = datetime.fromisoformat(str(told.pop("time")))
    assert happened.utcoffset() is not None
    assert abs((happened - begun).total_seconds()) < 600
    assert told == {
        "specversion": "1.0",
        "id": str(written.id),
        "source": "/our/shop",
        "type": "Placed",
        "datacontenttype": "application/json",
        "partitionkey": "42",
        "sequence": f"{1:019d}",
        "relayepoch": "1",
        "correlationid": STORY,
        "causationid": "cause",
    }
    assert event.get_data() == {"ü": [1, 2.5, None]}
    assert raw.headers["tenant"] == "ä".encode()


def test_names_of_attributes_are_as_cloudevents_wants_them(shared: Shared):
    """Lower-case letters and digits; and what the SDK reads and writes again is what we read."""
    with correlate(correlation_id=STORY):
        shared.write(key="42", type="Placed", payload={"a": 1})
    shared.relay()
    (raw,) = shared.raw()
    names = [name.removeprefix("ce_") for name in raw.headers if name.startswith("ce_")]
    assert all(name.isascii() and name.isalnum() and name == name.lower() for name in names), names
    first = shared.handle()
    shared.put_event(from_binary(raw))
    assert shared.handle() == []
    assert shared.counts() == (1, 1)
    again = shared.broker.records(shared.topic)[1]
    left_out = {"ce_partitionkey"}
    assert {name: value for name, value in raw.headers.items() if name not in left_out} == {
        name: value.encode() for name, value in again.headers.items()
    }
    assert (again.key, first[0].message.key) == ("42", "42")


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [(b"\xff\x00", "application/octet-stream"), ("ü", "text/plain; charset=utf-8"), (None, "application/json")],
    ids=["bytes", "text", "tombstone"],
)
def test_the_sdk_reads_payloads_of_other_kinds(shared: Shared, payload: bytes | str | None, content_type: str):
    shared.write(key="42", payload=payload)
    shared.relay()
    (raw,) = shared.raw()
    event = from_binary(raw, data_unmarshaller=lambda data: data)
    assert event.get_data() == (payload.encode() if isinstance(payload, str) else payload)
    assert event["datacontenttype"] == content_type
    assert event["type"] == shared.topic


@pytest.mark.parametrize(
    ("attributes", "more", "key"),
    [
        ({"partitionkey": "42"}, {}, "42"),
        ({}, {}, None),
        ({"customer": "7"}, {"key_mapper": lambda event: f"customer {event['customer']}"}, "customer 7"),
    ],
    ids=["partition key", "no key", "key mapper"],
)
def test_what_the_sdk_wrote_is_handled_and_a_repeat_of_it_recognised(
    shared: Shared, attributes: dict[str, str], more: dict[str, Any], key: str | None
):
    """INVARIANT I4: an id is any text, and with its source says who a message is, wherever it lies.

    An id that were taken for a UUID only, or known by its place, would have the repeat handled; one without its source
    would have another shop's message passed by.
    """
    event = shared.event({"amount": 7}, time="2026-01-02T03:04:05+02:00", **attributes)
    shared.put_event(event, **more)
    shared.put_event(event, **more)
    (delivery,) = shared.handle()
    message = delivery.message
    assert delivery.data == {"amount": 7}
    assert (message.id, message.source) == (uuid.uuid5(NAMESPACE, ID), "/their/shop")
    assert (message.key, message.type, message.topic) == (key, "Paid", shared.topic)
    assert message.time == datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)
    assert (message.sequence, message.headers) == (None, {})
    shared.put_event(event, **more)
    assert shared.handle() == []
    shared.put_event(shared.event({"amount": 8}, source="/another/shop", **attributes), **more)
    (other,) = shared.handle()
    assert other.data == {"amount": 8}
    assert shared.counts() == (2, 2)


def test_an_id_that_is_a_uuid_is_the_same_message_from_the_sdk_and_from_us(shared: Shared):
    written = shared.write(key="42", payload={"amount": 7})
    shared.relay()
    (first,) = shared.handle()
    assert first.message.id == written.id
    shared.put_event(shared.event({"amount": 7}, id=str(written.id), source="/our/shop"))
    assert shared.handle() == []
    shared.put_event(shared.event({"amount": 7}, id=str(written.id).upper(), source="/our/shop"))
    assert len(shared.handle()) == 1, "another text is another message"


# Anybody else


def test_a_record_without_cloudevents_headers_is_known_by_its_place_and_handled_once(shared: Shared):
    """INVARIANT I4: two that are alike are two; one that is read again, by the group or by its heir, is one.

    A group that goes back to the first record has only the ids to know them by.
    """
    shared.put(b"alike", "k")
    shared.put(b"alike", "k")
    first = shared.handle()
    assert [one.message.payload for one in first] == [b"alike", b"alike"]
    assert [(one.message.type, one.message.content_type) for one in first] == [
        (shared.topic, "application/octet-stream")
    ] * 2
    assert len({one.message.id for one in first}) == 2
    (source,) = {one.message.source for one in first}
    assert source
    assert shared.handle() == []
    rows(shared.database, "delete from inbox_offset")
    assert shared.handle() == []
    assert shared.counts() == (0, 2)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_nothing_that_anybody_writes_stops_a_group(shared: Shared, concurrency: int):
    """INVARIANT I8: keys and headers that are not UTF-8, headers without a value, no payload, no key: all are handled.

    One record that raised where it is read, or where its key chooses a lane, would stop its partition for good.
    """
    event = {"ce_specversion": b"1.0", "ce_source": b"/x", "ce_type": b"T"}
    shared.put(b"key", b"\xff\xfe\x00")
    shared.put(b"header", "k", [("a", b"\xff"), ("b", None), ("a", b"ok"), ("", b"")])
    shared.put(b"id", "k", {**event, "ce_id": b"\xff"})
    shared.put(b"no id", "k", {**event, "ce_id": None})
    shared.put(b"source", "k", {**event, "ce_id": b"1", "ce_source": b"a\x00b"})
    shared.put(b"type", "k", {**event, "ce_id": b"2", "ce_type": b"\xff", "ce_time": b"soon", "ce_sequence": b"-1"})
    shared.put(b"long", "k" * 5000, {**event, "ce_id": b"3" * 5000})
    shared.put(b"{", "k", {**event, "ce_id": b"4", "content-type": b"\xff"})
    shared.put(None, b"\xff")
    shared.put(None)
    shared.put(b"", b"")
    seen = shared.handle(concurrency)
    assert sorted(one.offset for one in seen) == list(range(11))
    by_offset = {one.offset: one.message for one in seen}
    assert by_offset[0].key == b"\xff\xfe\x00".decode("utf-8", "surrogateescape")
    assert by_offset[1].headers == {"a": "ok", "": ""}
    assert [by_offset[n].payload for n in (8, 9, 10)] == [None, None, b""]
    assert [one.data for one in seen if one.offset == 8] == [None], "a tombstone"
    assert shared.handle(concurrency) == []
    assert shared.counts() == (11, 0)


def test_what_tail_shows_of_anything(shared: Shared):
    shared.put(b"\xff", b"\xff\xfe", [("h", b"\xff"), ("none", None)])
    shared.put(None, "gone")
    shared.put("ü".encode())
    binary, tombstone, text = shared.tail("--once")
    assert (binary["key_base64"], binary["payload_base64"]) == (
        base64.b64encode(b"\xff\xfe").decode(),
        base64.b64encode(b"\xff").decode(),
    )
    assert {"key", "payload"}.isdisjoint(binary)
    assert binary["headers"] == {"h": "\ufffd"}
    assert (tombstone["key"], tombstone["payload"]) == ("gone", None)
    assert (text["key"], text["payload"], text["type"]) == (None, "ü", shared.topic)
    assert [one["offset"] for one in (binary, tombstone, text)] == [0, 1, 2]
    plain = shared.user.run("relay", "tail", shared.topic, "--log", shared.broker.url, "--once")
    assert (plain.code, plain.talk) == (0, "")
    assert plain.data.splitlines()[1].endswith("key=gone  (tombstone)")


# `relay tail`


def following(shared: Shared, *options: str) -> "subprocess.Popen[str]":
    arguments = ("tail", shared.topic, "--log", shared.broker.url, "--json", *options)
    return shared.user.start("relay", *arguments, PYTHONUNBUFFERED="1")


def lines(process: "subprocess.Popen[str]", many: int) -> list[Any]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline())["payload"] for _ in range(many)]


@pytest.fixture
def ending() -> Iterator[Callable[["subprocess.Popen[str]"], "subprocess.Popen[str]"]]:
    """Ends processes with the test."""
    running: list[subprocess.Popen[str]] = []

    def keep(process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
        running.append(process)
        return process

    yield keep
    for process in running:
        process.kill()
        process.communicate()


def test_tail_follows_what_comes_and_ends_when_it_is_told_to(
    shared: Shared, ending: Callable[["subprocess.Popen[str]"], "subprocess.Popen[str]"]
):
    for number in range(3):
        write(shared.database, shared.topic, str(number), key="k")
    shared.relay(delivery="exactly-once")
    assert [one["payload"] for one in shared.tail("--once")] == ["0", "1", "2"]
    assert [one["payload"] for one in shared.tail("--once", "--from-start")] == ["0", "1", "2"]
    all_of_it, new = ending(following(shared, "--from-start")), ending(following(shared))
    assert lines(all_of_it, 3) == ["0", "1", "2"]
    # Where the other begins is known to it alone: it has begun when it shows something.
    numbers = count(3)

    def begun() -> bool:
        shared.put(str(next(numbers)).encode(), "k")
        return readable(new)

    wait_until(begun, "it shows what comes")
    end = next(numbers)
    (first,) = lines(new, 1)
    assert int(first) >= 3, "and nothing of before"
    rest = [str(number) for number in range(int(first) + 1, end)]
    assert lines(new, len(rest)) == rest, "nor does it leave anything out"
    assert lines(all_of_it, end - 3) == [str(number) for number in range(3, end)]
    for process in (new, all_of_it):
        process.terminate()
        data, talk = process.communicate(timeout=60)
        assert (process.returncode, data, talk) == (0, "", "")


def readable(process: "subprocess.Popen[str]") -> bool:
    """Return whether there is something to read."""
    assert process.stdout is not None
    poll = select.poll()  # `select` takes no descriptor above 1,023
    poll.register(process.stdout, select.POLLIN)
    return bool(poll.poll(500))


def test_tail_shows_no_records_that_were_given_up_and_joins_no_group(shared: Shared):
    client = Producer({**shared.broker.settings, "transactional.id": shared.topic, "linger.ms": 0})
    client.init_transactions(30)
    for value, ends in ((b"kept", client.commit_transaction), (b"given up", client.abort_transaction)):
        client.begin_transaction()
        client.produce(shared.topic, value)
        client.flush(30)
        ends(30)
    wait_until(lambda: [one["payload"] for one in shared.tail("--once")] == ["kept"], "the transaction's mark")
    found = shared.broker.admin.list_consumer_groups().result(30).valid
    assert not [one.group_id for one in found if "tail" in one.group_id]


def test_tail_of_a_topic_that_is_not_there_is_a_notice(shared: Shared):
    name = f"none{uuid.uuid4().hex}"
    ended = shared.user.run("relay", "tail", name, "--log", shared.broker.url, "--once", "--json")
    assert (ended.code, ended.data) == (0, "")
    assert f"the log has no topic {name}" in ended.talk
    assert name not in shared.broker.admin.list_topics(timeout=30).topics, "nor is it made by asking"
