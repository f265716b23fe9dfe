"""A relay's hand on Kafka, exactly once: a chunk is a transaction, with its number in it.

The number is the committed offset of a topic of ours that holds nothing, in a group of the relay's own; Kafka commits
it with the chunk's records, or neither. A second partition of that topic has the epoch. Opening the producer ends what
older epochs have begun, and fences them. So does opening another one of librdkafka's, for a chunk that is given up: one
that goes on behind an aborted transaction gives the sequences of records whose acknowledgement it has not seen to the
next ones (tried, 2.16.0; "advancing epoch base msgid" in its rdkafka_partition.c), and a broker that had stored them
takes those for repeats and stores nothing.

Offsets of a group that commits nothing for `offsets.retention.minutes` (seven days) are forgotten by the brokers, so a
relay that is idle for long commits its number alone now and then, and before its first chunk.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from outbox.errors import Fenced, Permanent, Retryable, TimedOut, Unreachable
from outbox.message import Entry
from relay.logs.contract import Failure, ProducerIdentity, Settlement
from relay.logs.kafka.address import Address
from relay.logs.kafka.client import Faults, made
from relay.logs.kafka.errors import ours
from relay.logs.kafka.sending import Sender
from relay.logs.kafka.topics import Topics
from relay.logs.worker import Worker, done

NUMBERS = "outbox-relay.chunks"
"""The topic whose offsets are numbers and epochs; no record is ever in it."""
NUMBER, EPOCH = 0, 1
PARTITIONS = 2
TRANSACTION_SECONDS = 10.0
"""After so long the brokers end a transaction that its producer left open; until then readers wait behind it."""
SHARE = 0.7
"""Of that time: by then all records must be taken, or the transaction is given up from here."""
KEEP_SECONDS = 86_400.0
CALL_SECONDS = 1.0
PAUSE_SECONDS = 0.02
_PASSING = frozenset(
    {
        KafkaError._TIMED_OUT,  # noqa: SLF001 - librdkafka's own codes are named so
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._WAIT_COORD,  # noqa: SLF001
        KafkaError.CONCURRENT_TRANSACTIONS,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
    }
)

Result = TypeVar("Result")


class _Abortable(Retryable):
    """The transaction cannot be committed any more."""


class TransactionalProducer:
    """A relay's hand; see `NumberedProducer`. Chunks are settled by a thread: some calls have no time-out.

    Raises:
        Unreachable: no broker answers.
        Fenced: a newer epoch has opened its own.
    """

    def __init__(self, address: Address, topics: Topics, identity: ProducerIdentity) -> None:
        self._identity = identity
        self._bound_seconds = min(identity.lease_seconds / 2, TRANSACTION_SECONDS * SHARE)
        self._patience_seconds = 2 * identity.lease_seconds
        name = f"outbox-relay-{identity.installation}-{identity.incarnation}"
        _make_sure(topics)
        settings: dict[str, object] = {
            "transactional.id": name,
            "transaction.timeout.ms": int(TRANSACTION_SECONDS * 1000),
            # A client that has lost all connections forgets its brokers by default, and begins again at its first
            # addresses; then a chunk's number waits for a coordinator that was forgotten, inside a call that never
            # returns (librdkafka issue 5511). A relay opens another producer where this one finds nobody any more.
            "metadata.recovery.strategy": "none",
        }
        self._make = partial(Sender, address, topics, identity, settings)
        self._sender = self._make()
        # It never joins its group: it only names it, and reads what was committed.
        group = {"group.id": name, "isolation.level": "read_committed", "enable.auto.commit": False}
        self._reader = made(Consumer, address, Faults(), group)
        self._worker = Worker(f"transactions of {identity.relay}")
        self._pending: deque[tuple[int, Future[Failure | None]]] = deque()
        self._number: int | None = None
        self._expected: int | None = None
        self._closed = False
        self._kept = float("-inf")
        opened = self._worker.submit(self._open)
        if not wait([opened], self._patience_seconds).done:
            self.close()
            raise Unreachable(f"the brokers have not opened a transaction for {self._patience_seconds:g} s")
        try:
            opened.result()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        # Before, so that a stale relay does not end the transaction of the one that holds the lease; after, since that
        # one may have come in between.
        self._refuse_if_newer(self._stored(EPOCH))
        # A coordinator that is still loading its state says so, for a while after a broker's start.
        self._until_done("opening the relay's transactions", self._sender.producer.init_transactions)
        self._refuse_if_newer(self._stored(EPOCH))
        self._number = self._stored(NUMBER)
        self._expected = None if self._number is None else self._number + 1
        self._begin()
        self._commit(None)

    def _stored(self, what: int) -> int | None:
        """Return the number or the epoch that the brokers have; the answer waits for a transaction that is ending."""
        doing = "reading the number of the last chunk"
        position = TopicPartition(NUMBERS, what)
        (found,) = self._until_done(doing, lambda seconds: self._reader.committed([position], timeout=seconds))
        if found.error is not None:
            raise ours(found.error, doing)
        return None if found.offset == OFFSET_INVALID else int(found.offset)

    def _refuse_if_newer(self, epoch: int | None) -> None:
        if epoch is not None and epoch > self._identity.epoch:
            name, own = self._identity.relay, self._identity.epoch
            raise Fenced(f"relay {name!r} produces with epoch {epoch} by now; this one has {own}")

    def number(self) -> int | None:
        """Return the number of the relay's last chunk in the log; see `NumberedProducer.number`."""
        return self._number

    def keep(self, number: int) -> None:
        """Commit the number alone, if none was committed for a day; see `NumberedProducer.keep`."""
        if self._pending or time.monotonic() - self._kept < KEEP_SECONDS:
            return
        kept = self._worker.submit(lambda: self._commit_alone(number))
        if not wait([kept], self._patience_seconds).done:
            raise Unreachable(f"the brokers have not taken a chunk's number for {self._patience_seconds:g} s")
        kept.result()

    def produce(self, number: int, chunk: Sequence[Entry]) -> None:
        """Take a chunk; see `Producer.produce`."""

        def send() -> Failure | Retryable | None:
            return self._send(number, chunk)

        # Here, if the thread is free: handing over is the caller's work, and so is making the next chunk ready. Two
        # threads would do them in turns, and be done with both before there is anything to wait for.
        sent = self._worker.submit(send) if self._worker.is_busy() else done(send)
        self._pending.append((number, self._worker.submit(lambda: self._end(number, sent.result()))))

    def settle(self, timeout_seconds: float) -> Settlement | None:
        """Wait for the oldest chunk that is not settled; see `Producer.settle`."""
        if not self._pending or not wait([self._pending[0][1]], timeout_seconds).done:
            return None
        number, transacted = self._pending.popleft()
        return Settlement(number, transacted.result())

    def _send(self, number: int, chunk: Sequence[Entry]) -> Failure | Retryable | None:
        """Begin a transaction and hand the chunk over; return why it has to be given up, if so."""
        if self._expected not in (None, number):
            raise Retryable(f"chunk {number} is not taken: {self._expected} is to come, which failed")
        self._expected = number
        self._begin()
        try:
            return self._sender.send(chunk)
        except Retryable as error:
            return error

    def _end(self, number: int, trouble: Failure | Retryable | None) -> Failure | None:
        """Store chunk and number, or nothing of them."""
        trouble = trouble or self._taken() or self._committed(number)
        if trouble is None or not self._given_up(number):
            return None
        if isinstance(trouble, Retryable):
            raise trouble
        return trouble

    def _commit_alone(self, number: int) -> None:
        self._begin()
        self._commit(number)

    def _begin(self) -> None:
        self._until_done("beginning a transaction", lambda _: self._sender.producer.begin_transaction())

    def _taken(self) -> Failure | Retryable | None:
        """Wait until the brokers have all records.

        Not in the commit, which cannot be given up once it has begun.
        """
        if not self._sender.flush(self._bound_seconds):
            return TimedOut(f"the brokers have not taken a chunk in {self._bound_seconds:g} s")
        try:
            failure = self._sender.refusal(self._sender.firsts)
        except TimedOut as error:
            return error
        if failure is not None and not failure.permanent:
            return TimedOut(f"a chunk was not taken: {failure.reason}")
        return failure

    def _committed(self, number: int) -> TimedOut | None:
        """Commit chunk and number; return why they have to be given up, if so."""
        try:
            self._commit(number)
        except _Abortable as error:
            return TimedOut(str(error))
        return None

    def _commit(self, number: int | None) -> None:
        positions = [TopicPartition(NUMBERS, EPOCH, self._identity.epoch)]
        if number is not None:
            positions.append(TopicPartition(NUMBERS, NUMBER, number))
        group = self._reader.consumer_group_metadata()
        self._until_done(
            "storing a chunk's number",
            lambda seconds: self._sender.producer.send_offsets_to_transaction(positions, group, seconds),
        )
        self._until_done("committing a chunk", self._sender.producer.commit_transaction)
        if number is not None:
            self._expected, self._kept = number + 1, time.monotonic()

    def _given_up(self, number: int) -> bool:
        """Go on with another producer; when this returns, nothing of the chunk can be read, ever.

        Unless it is stored after all: then this returns False.
        """
        self._sender.close()
        self._sender = self._make()
        self._open()
        if self._number == number:
            return False
        self._expected = number
        return True

    def _until_done(self, doing: str, call: Callable[[float], Result]) -> Result:
        """Call until it is done; a call that timed out goes on where it was.

        Raises:
            _Abortable: the transaction has to be aborted.
            Fenced: a newer epoch has opened its own.
            Retryable: unknown outcome: another producer has to be opened.
        """
        deadline = time.monotonic() + self._patience_seconds
        while True:
            if self._closed:  # a call could fence whoever came after us
                raise Unreachable(f"{doing}: the producer was closed")
            try:
                return call(CALL_SECONDS)
            except KafkaException as error:
                said: KafkaError = error.args[0]
                if said.txn_requires_abort():
                    raise _Abortable(f"{doing}: {said.str()}") from error
                if not (said.retriable() or said.code() in _PASSING):
                    raise ours(said, doing) from error
                if time.monotonic() > deadline:
                    raise Unreachable(f"{doing}: {said.str()}") from error
                time.sleep(PAUSE_SECONDS)

    def close(self) -> None:
        """Let go; a transaction that is open is ended by the brokers, or by the relay's next producer."""
        self._closed = True
        if not self._worker.is_busy():
            self._sender.close()
        self._worker.end(lambda: None)


def _make_sure(topics: Topics) -> None:
    """See that the topic of numbers is there. A deleted one has taken its numbers with it."""
    found = topics.cluster.topics([NUMBERS]).get(NUMBERS)
    if found is None:
        topics.cluster.make([NUMBERS], partitions=PARTITIONS, replication=topics.address.replication)
    elif found.partitions < PARTITIONS:
        raise Permanent(f"topic {NUMBERS!r}, where chunks are numbered, has one partition: give it {PARTITIONS}")
