"""Exactly once into Kafka: the number of the last chunk there, the open one here, and what is done when they differ."""

from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from databases import install, rows, wait_until, write
from kafka_plain import Broker
from sqlalchemy import make_url

from outbox.errors import Fenced, Permanent, Retryable
from outbox.message import Epoch
from outbox.tables import Place
from relay import Relay
from relay.database import open_database
from relay.logs import ProducerIdentity, open_log
from relay.logs.kafka import transactions
from relay.logs.kafka.sending import Sender
from relay.logs.kafka.transactions import TransactionalProducer
from relay.move.contract import Work
from relay.reader.contract import Limits
from relay.registration import register
from relay.topics import parse_topics

STATE = "select chunk, open_last from relay_checkpoint order by step desc limit 1"
NUMBER, EPOCH = 0, 1


@pytest.fixture
def broker(kafka_url: str) -> Broker:
    return Broker(kafka_url)


class Road:
    """An outbox, a topic, and relays that are crashed on the way between them."""

    def __init__(self, database: str, broker: Broker) -> None:
        self.database = install(database)
        self.broker = broker
        self.topic = broker.topic(partitions=1)
        self.written = 0

    def write(self, count: int) -> None:
        for number in range(self.written, self.written + count):
            write(self.database, self.topic, str(number), key="k")
        self.written += count

    def drain(self, delivery: str = "exactly-once", **settings: Any) -> None:
        Relay(self.database, self.broker.url, delivery=delivery, **settings).run(once=True)

    def standing(self) -> "Standing":
        return Standing(self)

    def state(self) -> tuple[Any, ...]:
        return rows(self.database, STATE)[0]

    def is_whole(self) -> bool:
        return self.broker.values(self.topic) == [str(number) for number in range(self.written)]

    def group(self) -> str:
        ((installation,),) = rows(self.database, "select id from outbox_installation")
        ((incarnation,),) = rows(self.database, "select incarnation from relay")
        return f"outbox-relay-{installation}-{incarnation}"

    def stored(self, what: int) -> int:
        """Return the number or the epoch that the brokers have; -1001 for none."""
        wanted = ConsumerGroupTopicPartitions(self.group(), [TopicPartition(transactions.NUMBERS, what)])
        (future,) = self.broker.admin.list_consumer_group_offsets([wanted]).values()
        (found,) = future.result(30).topic_partitions
        return found.offset

    def forget_number(self) -> None:
        """As when the group's offsets have expired."""
        self.broker.admin.delete_consumer_groups([self.group()])[self.group()].result(30)


class Standing:
    """A relay's parts, with the lease taken, to be moved step by step."""

    def __init__(self, road: Road, owner: str = "") -> None:
        self.database = open_database(make_url(road.database), Place(), name="default", lease_seconds=10)
        log = open_log(road.broker.url)
        registration, _ = register(self.database, name="default", topics="*", log=log.identity(), latest=False)
        self.lease = self.database.lease(registration.incarnation, owner or str(uuid4()))
        assert self.lease.take().held is not None
        self.work = Work("default", self.database.installation(), registration.incarnation, log, "exactly-once")
        self.mover: Any = self.database.mover(self.lease, parse_topics("*"), self.work)

    def leave(self) -> None:
        """Go away as a crash would; releasing only spares the next one the wait."""
        self.mover.close()
        self.lease.release()
        self.database.close()


@pytest.fixture
def road(postgresql_url: str, broker: Broker) -> Road:
    return Road(postgresql_url, broker)


def crash_with_a_chunk_unsent(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a chunk open of which the log has nothing."""
    standing = road.standing()

    def lost(*_: object) -> None:
        raise Retryable("the connection is lost")

    with monkeypatch.context() as broken, pytest.raises(Retryable):
        broken.setattr(TransactionalProducer, "produce", lost)
        standing.mover.step()
    standing.leave()


def crash_with_a_chunk_sent(road: Road) -> None:
    """Leave a chunk open that the log has."""
    standing = road.standing()
    standing.mover.step()
    wait_until(standing.mover._producer._pending[0][1].done, "the log has it")
    standing.leave()


def test_the_number_and_the_epoch_lie_with_the_records(road: Road):
    road.write(3)
    road.drain()
    road.write(3)
    road.drain()
    assert road.state() == (2, None)
    assert (road.stored(NUMBER), road.stored(EPOCH)) == (2, 2)
    assert road.is_whole()


def test_a_chunk_that_was_open_and_did_not_arrive_is_sent_by_its_bounds(road: Road, monkeypatch: pytest.MonkeyPatch):
    road.write(3)
    crash_with_a_chunk_unsent(road, monkeypatch)
    assert road.state() == (0, 3)
    road.write(3)
    road.drain()
    assert road.is_whole()
    assert road.state() == (2, None)


def test_a_chunk_that_was_open_and_arrived_is_not_sent_again(road: Road):
    """INVARIANT I4: the number came with the records; sending the chunk again would double it."""
    road.write(3)
    crash_with_a_chunk_sent(road)
    assert road.state() == (0, 3)
    road.write(3)
    road.drain()
    assert road.is_whole()
    assert road.state() == (2, None)


@pytest.mark.parametrize("arrived", [True, False])
def test_what_the_brokers_have_forgotten_of_an_open_chunk_a_person_decides(
    road: Road, monkeypatch: pytest.MonkeyPatch, arrived: bool
):
    road.write(3)
    if arrived:
        crash_with_a_chunk_sent(road)
    else:
        crash_with_a_chunk_unsent(road, monkeypatch)
    road.forget_number()
    for _ in range(2):
        with pytest.raises(Permanent, match=r"3 messages.*forgotten.*ce_sequence 0+3\b.*--open-chunk sent.*unsent"):
            road.drain()
    assert len(road.broker.values(road.topic)) == (3 if arrived else 0), "nothing is guessed"
    road.write(2)
    road.drain(open_chunk="sent" if arrived else "unsent")
    assert road.is_whole()
    road.drain(open_chunk="unsent")
    assert road.is_whole(), "where nothing is to be decided, what was said has no effect"


def test_a_number_that_was_forgotten_with_nothing_open_is_stored_anew(road: Road):
    road.write(3)
    road.drain()
    road.forget_number()
    assert road.stored(NUMBER) < 0
    road.drain()
    assert road.stored(NUMBER) == 1, "before the first chunk: of one that is open then, it is known whether it arrived"
    road.write(3)
    road.drain()
    assert road.is_whole()


def test_a_relay_that_is_idle_for_long_stores_its_number_now_and_then(road: Road, monkeypatch: pytest.MonkeyPatch):
    road.write(3)
    standing = road.standing()
    while not standing.mover.step().empty:
        pass
    assert road.stored(NUMBER) == 1
    road.forget_number()
    standing.mover.step()
    assert road.stored(NUMBER) < 0
    monkeypatch.setattr(transactions, "KEEP_SECONDS", 0.0)
    standing.mover.step()
    assert (road.stored(NUMBER), road.stored(EPOCH)) == (1, 1)
    standing.leave()
    road.write(3)
    road.drain()
    assert road.is_whole()


def test_a_number_that_belongs_to_neither_is_a_stop_in_words(road: Road):
    road.write(3)
    road.drain()
    rows(road.database, "update relay_checkpoint set chunk = 5")
    with pytest.raises(Permanent, match="the outbox knows 5 chunks as done and the log has 1"):
        road.drain()
    assert road.is_whole()


def stale_producer(holder: Standing) -> Any:
    """Open a producer of the epoch before the holder's."""
    work = holder.work
    return work.log.producer(
        ProducerIdentity("default", work.installation, work.incarnation, Epoch(0), 10.0, "exactly-once")
    )


def stale_producer_opened_late(holder: Standing, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open one that has looked at the epoch before the holder came."""
    with monkeypatch.context() as late:
        late.setattr(TransactionalProducer, "_refuse_if_newer", lambda *_: None)
        return stale_producer(holder)


def test_a_stale_relay_that_opens_late_ends_the_work_of_the_one_that_holds_the_lease_and_that_one_goes_on(
    road: Road, monkeypatch: pytest.MonkeyPatch
):
    """INVARIANT I6: the stale one is told by the epoch; the other goes on with another producer, which fences it."""
    road.write(3)
    holder = road.standing()
    with pytest.raises(Fenced, match="produces with epoch 1 by now; this one has 0"):
        stale_producer(holder)
    stale = stale_producer_opened_late(holder, monkeypatch)
    while not holder.mover.step().empty:
        pass
    assert road.is_whole()
    stale.produce(1, [])
    with pytest.raises(Fenced):
        stale.settle(30)
    stale.close()
    holder.leave()


def test_a_stale_relay_that_opens_before_the_holders_commit_fences_it_and_the_holder_begins_again(
    road: Road, monkeypatch: pytest.MonkeyPatch
):
    """INVARIANT I6: at once, and under --once too; what was not committed is sent again."""
    road.write(3)
    holder = road.standing()
    flush = Sender.flush
    opened: list[Any] = []

    def flush_and_be_fenced(sender: Sender, seconds: float) -> bool:
        done = flush(sender, seconds)
        opened.append(stale_producer_opened_late(holder, monkeypatch))
        return done

    with monkeypatch.context() as slow, pytest.raises(Retryable, match=r"the lease is ours.*opened anew") as caught:
        slow.setattr(Sender, "flush", flush_and_be_fenced)
        while not opened:
            holder.mover.step()
        holder.mover.finish()
    assert isinstance(caught.value.__cause__, Fenced)
    holder.leave()
    opened[0].close()
    road.drain()
    assert road.is_whole()


def test_a_chunk_that_takes_too_long_is_given_up_and_halved(road: Road, monkeypatch: pytest.MonkeyPatch):
    """INVARIANT I8: a chunk that takes longer than a transaction may last would be repeated for ever."""
    road.write(8)
    standing = road.standing()
    flush = type(standing.mover._producer._sender).flush
    sizes: list[int] = []

    def slow(self: Any, seconds: float) -> bool:
        sizes.append(len(self.producer))
        return len(self.producer) <= 2 and flush(self, seconds)

    monkeypatch.setattr(type(standing.mover._producer._sender), "flush", slow)
    standing.mover._limits = Limits(entries=8)
    while not standing.mover.step().empty:
        pass
    standing.mover.finish()
    assert sizes[:3] == [8, 4, 2]
    assert road.is_whole()
    standing.leave()


def test_a_transaction_that_cannot_even_begin_is_begun_by_another_producer(road: Road):
    """INVARIANT I8: an error of the client's that is not foreseen there must not end the relay."""
    road.write(3)
    standing = road.standing()
    sender = standing.mover._producer._sender
    sender.producer = CannotBegin(sender.producer)
    with pytest.raises(Retryable, match="beginning a transaction: not in this state"):
        while True:
            standing.mover.step()
    standing.leave()
    road.drain()
    assert road.is_whole()


class CannotBegin:
    """A client in a state in which its transaction wants to be aborted before it has begun."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def begin_transaction(self) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE, "not in this state", txn_requires_abort=True))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_the_delivery_may_change_between_runs(road: Road, monkeypatch: pytest.MonkeyPatch):
    road.write(3)
    crash_with_a_chunk_sent(road)
    road.write(3)
    road.drain("at-least-once")
    assert road.is_whole(), "the open chunk was settled first"
    road.write(3)
    crash_with_a_chunk_unsent(road, monkeypatch)
    road.drain("at-most-once")
    assert road.is_whole()
    road.write(3)
    road.drain()
    assert road.is_whole()
    assert road.state() == (3, None)
