"""The commands on a real Kafka, as a user meets them: what is wrong is said in words, with its exit code."""

import re
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from acceptance.commands import Ended, User
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions
from conformance.kafka_plain import Broker, servers
from databases import install, rows, wait_until, write
from kafka_server import KafkaServer

PASSWORD = "hunter2"
HANDLER = """@inbox.handler("{topic}")
def handle(delivery, session):
    session.execute(text("insert into effects (body) values (:body)"), {{"body": delivery.message.payload.decode()}})
"""
NOWHERE = f"kafka://app:{PASSWORD}@127.0.0.1:1?security.protocol=sasl_plaintext&sasl.mechanism=PLAIN"
COMMANDS = ["relay run --once", "inbox run --once", "relay tail", "relay tail --once", "inbox status", "inbox forget"]

Running = Callable[..., "subprocess.Popen[str]"]


class Shop(User):
    """A user whose handlers handle one topic, in a group of its own."""

    topic: str
    group: str

    def ready(self) -> "Shop":
        object.__setattr__(self, "topic", f"t{uuid.uuid4().hex[:10]}")
        object.__setattr__(self, "group", f"g{uuid.uuid4().hex[:10]}")
        install(self.database)
        rows(self.database, "create table effects (place bigint generated always as identity, body text)")
        self.handlers(HANDLER.format(topic=self.topic), self.group)
        return self

    def arguments(self, command: str, log: str, *more: str) -> list[str]:
        """What is typed for one of `COMMANDS`, with the log's URL."""
        program, verb, *options = command.split()
        what = {"run": ["handlers:inbox"] if program == "inbox" else [], "tail": [self.topic], "forget": [self.group]}
        database = [] if verb == "tail" else ["--database", self.database]
        return [program, verb, *what.get(verb, []), *options, *database, "--log", log, *more]

    def does(self, command: str, log: str, *more: str) -> Ended:
        return self.run(*self.arguments(command, log, *more))

    def effects(self) -> list[str]:
        return [body for (body,) in rows(self.database, "select body from effects order by place")]

    def write(self, *payloads: str) -> None:
        for payload in payloads:
            write(self.database, self.topic, payload, key="k")


def in_words(ended: Ended, code: int) -> bool:
    """Return whether a command failed with that code and one line of words: no traceback, no password."""
    assert ended.code == code, ended.talk
    assert "Traceback" not in ended.talk
    assert PASSWORD not in ended.talk + ended.data
    assert len(re.findall(r"^(?:\S+ )?(?:relay|inbox): error: ", ended.talk, re.MULTILINE)) == 1, ended.talk
    return True


def said(process: "subprocess.Popen[str]", words: str) -> str:
    """Return what a process says, up to the line with these words."""
    assert process.stderr is not None
    lines = ""
    for line in process.stderr:
        lines += line
        if words in line:
            return lines
    raise AssertionError(f"it ended and had not said {words!r}:\n{lines}")


def terminated(process: "subprocess.Popen[str]") -> str:
    """Tell a process to end, see that it ends well, and return what it said at last."""
    process.send_signal(signal.SIGTERM)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 0, talk
    assert "Traceback" not in talk
    return talk


@pytest.fixture
def shop(postgresql_url: str, tmp_path: Path) -> Shop:
    return Shop(tmp_path, postgresql_url).ready()


@pytest.fixture
def broker(kafka_url: str, shop: Shop) -> Iterator[Broker]:
    """The shared broker, with the shop's topic: one partition."""
    broker = Broker(kafka_url)
    broker.make(shop.topic, 1)
    yield broker
    broker.delete(shop.topic)


@pytest.fixture
def running(shop: Shop) -> Iterator[Running]:
    """Starts one of `COMMANDS`, and ends it with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(command: str, log: str, *more: str) -> "subprocess.Popen[str]":
        started.append(shop.start(*shop.arguments(command, log, *more)))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


# Brokers that are not there, or do not let us in


@pytest.mark.parametrize("command", COMMANDS)
def test_a_broker_that_is_not_there_is_given_up_after_the_wait(shop: Shop, kafka_programs: Path, command: str):
    ended = shop.does(command, NOWHERE, "--wait", "1")
    assert in_words(ended, 1)
    assert "127.0.0.1:1" in ended.talk
    assert "refused" in ended.talk


def test_relay_and_inbox_wait_for_a_broker_say_so_and_go_on_when_it_comes(
    shop: Shop, kafka_programs: Path, tmp_path: Path, running: Running
):
    """INVARIANT I8: what waits for its log waits as long as it takes, without a person."""
    server = KafkaServer(tmp_path / "kafka", programs=kafka_programs)
    relay = running("relay run --delivery exactly-once", server.url())
    inbox = running("inbox run", server.url())
    shop.write("1", "2")
    try:
        for process in (relay, inbox):
            assert "no broker answers" in said(process, str(server.port))
        server.start()
        wait_until(lambda: shop.effects() == ["1", "2"], "it goes the whole road")
        shop.write("3")
        wait_until(lambda: shop.effects() == ["1", "2", "3"], "and goes on")
        for process in (relay, inbox):
            terminated(process)
    finally:
        server.delete()


def test_a_password_that_is_refused_is_said_and_not_shown(shop: Shop, kafka_programs: Path, tmp_path: Path):
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    server = KafkaServer(
        tmp_path / "kafka",
        programs=kafka_programs,
        settings={
            "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.client.plain.sasl.jaas.config": (
                f'{login} username="broker" password="b" user_broker="b" user_app="let/me in";'
            ),
        },
    )
    query = "security.protocol=sasl_plaintext&sasl.mechanism=PLAIN"
    wrong = f"kafka://app:{PASSWORD}@{servers(server.url())}?{query}"
    right = f"kafka://app:let%2Fme%20in@{servers(server.url())}?{query}"
    shop.write("1")
    try:
        server.start()
        for command in ("relay run --once", "inbox run --once", "relay tail", "inbox status"):
            ended = shop.does(command, wrong, "--wait", "1")
            assert in_words(ended, 1)
            assert "uthentication" in ended.talk, ended.talk
        for command in ("relay run --once", "inbox run --once"):
            ended = shop.does(command, right)
            assert ended.code == 0, ended.talk
            assert "let/me in" not in ended.talk
        assert shop.effects() == ["1"]
    finally:
        server.delete()


@pytest.mark.parametrize("command", ["relay run --once", "inbox run --once", "relay tail"])
def test_tls_to_a_plain_port_is_said(shop: Shop, kafka_url: str, command: str):
    ended = shop.does(command, f"{kafka_url}?security.protocol=ssl", "--wait", "1")
    assert in_words(ended, 1)
    assert "SSL" in ended.talk


@pytest.mark.parametrize("command", COMMANDS)
def test_a_setting_that_nobody_knows_is_refused(shop: Shop, kafka_programs: Path, command: str):
    ended = shop.does(command, f"{NOWHERE}&no.such.setting=1")
    assert in_words(ended, 2)
    assert "no.such.setting" in ended.talk


@pytest.mark.parametrize("command", ["relay run --once", "inbox run --once"])
def test_a_setting_that_is_not_the_users_is_refused(shop: Shop, kafka_programs: Path, command: str):
    ended = shop.does(command, f"{NOWHERE}&auto.offset.reset=latest")
    assert in_words(ended, 2)
    assert "not yours to set" in ended.talk


# Groups and topics


@pytest.mark.parametrize(
    "settings",
    [{"partition.assignment.strategy": "range"}, {"group.protocol": "consumer"}],
    ids=["another strategy", "another protocol"],
)
def test_a_group_of_another_program_is_not_joined(shop: Shop, broker: Broker, running: Running, settings: dict):
    """INVARIANT I7: the name of the group is said, and that others use it; and they are not disturbed."""
    other = Consumer({**broker.settings, "group.id": shop.group, **settings})
    try:
        other.subscribe([shop.topic])
        wait_until(lambda: other.poll(0.1) is None and bool(other.assignment()), "the other program has the partition")
        assert in_words(shop.does("inbox run --once", broker.url), 2)
        process = running("inbox run", broker.url)
        _, talk = process.communicate(timeout=60)
        assert in_words(Ended(process.returncode, "", talk), 2)
        assert shop.group in talk
        assert "is taken" in talk
        assert "--group" in talk
        assert other.assignment() == [TopicPartition(shop.topic, 0)]
    finally:
        other.close()
    shop.write("1")
    assert shop.does("relay run --once", broker.url).code == 0
    assert shop.does("inbox run --once", broker.url).code == 0
    assert shop.effects() == ["1"]


def test_a_group_that_another_protocol_takes_over_is_left(shop: Shop, broker: Broker, running: Running):
    """INVARIANT I7: the brokers let it in, turn the group into one of theirs, and give it partitions of ours.

    The coordinator as we ask it then knows nobody in the group; without a look at its type a member would wait in
    silence for the share that it is to have.
    """
    put(broker, shop.topic, "0")
    process = running("inbox run", broker.url)
    wait_until(lambda: shop.effects() == ["0"], "it has the partition")
    settings = {**broker.settings, "group.id": shop.group, "group.protocol": "consumer"}
    others = [Consumer(settings), Consumer(settings)]
    try:
        for one in others:
            one.subscribe([shop.topic])
        broker.admin.create_partitions([NewPartitions(shop.topic, 2)])[shop.topic].result(30)

        def has_ended() -> bool:
            for one in others:
                one.poll(0.05)
            return process.poll() is not None

        wait_until(has_ended, "it ends")
        _, talk = process.communicate()
        assert in_words(Ended(process.returncode, "", talk), 2)
        assert "newer protocol" in talk
    finally:
        for one in others:
            one.close()


def put(broker: Broker, topic: str, *payloads: str) -> None:
    """Produce records by a plain client."""
    client = Producer(broker.settings)
    for payload in payloads:
        client.produce(topic, payload, "k")
    assert client.flush(30) == 0


def claimed(shop: Shop) -> int:
    """Return how far the group has come."""
    ((end,),) = rows(
        shop.database,
        "select coalesce(max(end_offset), -1) from inbox_offset where consumer_group = ? and partition = 0",
        shop.group,
    )
    return int(end)


def test_records_that_were_deleted_unread_stop_the_inbox_and_nothing_is_skipped(
    shop: Shop, broker: Broker, running: Running
):
    """INVARIANT I7: what a group has not handled and Kafka no longer has is said, at each start.

    With `auto.offset.reset`, as other consumers have it, the group would go on at the first record that is left, and
    nobody would hear of it.
    """
    put(broker, shop.topic, "0", "1", "2")
    assert shop.does("inbox run --once", broker.url).code == 0
    put(broker, shop.topic, "3", "4", "5", "6")
    place = TopicPartition(shop.topic, 0, 5)
    broker.admin.delete_records([place])[place].result(30)
    process = running("inbox run", broker.url)
    _, talk = process.communicate(timeout=60)
    again = shop.does("inbox run --once", broker.url)
    for ended in (Ended(process.returncode, "", talk), again):
        assert in_words(ended, 1)
        assert "at offset 3, and" in ended.talk
        assert "begins at 5, so records were deleted before they were handled" in ended.talk
    assert claimed(shop) == 3
    assert shop.effects() == ["0", "1", "2"]
    (status,) = shop.does("inbox status", broker.url, "--json").objects()
    assert status["lag_messages"] == {shop.topic: {"0": 4}}


@pytest.mark.parametrize("more", [3, 20], ids=["shorter", "longer"])
def test_a_topic_that_is_made_anew_under_an_inbox_is_read_from_its_first_record(
    shop: Shop, broker: Broker, running: Running, more: int
):
    """INVARIANT I1: offsets of a topic say nothing about another of the same name, which may well be longer.

    A group that went by names and offsets would begin behind the new topic's first records.
    """
    put(broker, shop.topic, *map(str, range(5)))
    process = running("inbox run", broker.url)
    wait_until(lambda: len(shop.effects()) == 5, "it has handled what there is")
    incarnations = "select distinct incarnation from inbox_offset where consumer_group = ? and partition = 0"
    before = rows(shop.database, incarnations, shop.group)
    broker.delete(shop.topic)
    broker.make(shop.topic, 1)
    # What is put there earlier may be read on from the old place first: it is looked every two seconds.
    wait_until(lambda: rows(shop.database, incarnations, shop.group) not in (before, []), "the new topic is noticed")
    put(broker, shop.topic, *map(str, range(100, 100 + more)))
    wait_until(lambda: len(shop.effects()) >= 5 + more, "it has handled what there is now")
    terminated(process)
    assert shop.effects() == [*map(str, range(5)), *map(str, range(100, 100 + more))]
    (status,) = shop.does("inbox status", broker.url, "--json").objects()
    assert status["lag_messages"] == {shop.topic: {"0": 0}}
    assert status["handled"] == more, "of the topic as it is now"


# A clean end


def test_exactly_once_end_to_end_and_sigterm_drains_both(shop: Shop, broker: Broker, running: Running):
    """INVARIANT I4: told to end in the middle of their work, both end well, and others go on where they have stopped.

    A relay that left its chunk's transaction open would hold up every reader; an inbox that reported more than it has
    handled, or handled more than it claimed, would have its successor skip or repeat.
    """
    rows(
        shop.database,
        "insert into outbox (topic, key, payload) select ?, 'k', n::text::bytea from generate_series(0, 999) n",
        shop.topic,
    )
    relay = running("relay run --delivery exactly-once", broker.url)
    inbox = running("inbox run", broker.url)
    wait_until(lambda: bool(shop.effects()), "the first are handled")
    rows(
        shop.database,
        "insert into outbox (topic, key, payload) select ?, 'k', n::text::bytea from generate_series(1000, 1999) n",
        shop.topic,
    )
    terminated(relay)
    (left,) = shop.run("relay", "status", "--database", shop.database, "--json").objects()
    assert left["owner"] is None
    terminated(inbox)
    handled = len(shop.effects())
    records = broker.records(shop.topic)
    assert [one.value for one in records] == [str(number).encode() for number in range(len(records))]
    below = [one for one in records if one.offset < claimed(shop)]
    assert len(below) == handled, "what is claimed is what was handled"
    reported = Consumer({**broker.settings, "group.id": shop.group})
    (place,) = reported.committed([TopicPartition(shop.topic, 0)], 30)
    reported.close()
    assert place.offset == claimed(shop)
    assert shop.does("relay run --once --delivery exactly-once", broker.url).code == 0
    assert shop.does("inbox run --once", broker.url).code == 0
    assert shop.effects() == [str(number) for number in range(2000)]
    assert [one.value for one in broker.records(shop.topic)] == [str(number).encode() for number in range(2000)]
    (status,) = shop.does("inbox status", broker.url, "--json").objects()
    assert status == {
        "group": shop.group, "lag_messages": {shop.topic: {"0": 0}}, "handled": 2000, "duplicates": 0, "ignored": 0,
        "dead_letters": 0,
    }  # fmt: skip
