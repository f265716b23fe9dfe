"""Handing chunks to librdkafka's producer, and hearing which of their messages were refused."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from outbox.errors import Retryable, TimedOut
from outbox.message import Entry
from relay.logs.contract import Failure, ProducerIdentity
from relay.logs.kafka.address import Address
from relay.logs.kafka.client import Faults, made
from relay.logs.kafka.errors import DROPPED, UNKNOWN_TOPIC, is_permanent, ours, remedy_of, words_of
from relay.logs.kafka.partitioner import DEFAULT, partitioner_of
from relay.logs.kafka.priming import Priming
from relay.logs.kafka.topics import Topics
from relay.logs.kafka.wire import fault, header_writer, size_of
from relay.logs.rows import Row, entry_of, rows_of

MESSAGE_BYTES = 100_000_000
"""The client's own bound on a message. Not the one that counts, which is the topic's."""
NEARLY_BYTES = 20_000
"""So far below a topic's bound, a message is weighed with its headers."""
ROOM_SECONDS = 0.05
FLUSH_SECONDS = 0.1
REPORT_SECONDS = 1.0
TIDYING_BYTES = 4_096
SETTINGS: dict[str, object] = {
    "linger.ms": "5",
    "partitioner": DEFAULT,
    # A chunk is large enough for batches: no need to give all without a key to one partition for a while.
    "sticky.partitioning.linger.ms": "0",
    "message.max.bytes": str(MESSAGE_BYTES),
    "queue.buffering.max.messages": "1000000",
    "queue.buffering.max.kbytes": "262144",
    "topic.metadata.propagation.max.ms": "10000",
}


class _Refused(Exception):
    """A message was refused, and none may follow it."""


_Refusal = tuple[KafkaError, Message, Any]
"""A message that was not taken, why, and the one before it."""


def _first(refusal: _Refusal) -> tuple[KafkaError, Message]:
    """Return the first one that is at fault itself; the first one, if none is."""
    found = refusal[:2]
    at_fault = None
    rest: _Refusal | None = refusal
    while rest is not None:
        error, message, rest = rest
        found = error, message
        if is_permanent(error):
            at_fault = error, message
    return at_fault or found


class Sender:
    """One producer of librdkafka's. Not safe to use from two threads at once.

    Attributes:
        producer: librdkafka's.
        firsts: the first row of each topic of the last chunk: all that is kept of it here, librdkafka has the rest.
    """

    def __init__(
        self, address: Address, topics: Topics, identity: ProducerIdentity, settings: dict[str, object]
    ) -> None:
        self._address = address
        self._topics = topics
        topics.look_again()
        wanted = {name: value for name, value in SETTINGS.items() if name not in address.settings}
        self._settings = {**wanted, **settings, "delivery.report.only.error": True}
        # A batch counts as it is sent: what is too large before it is compressed may fit.
        codecs = {address.settings.get(name, "none") for name in ("compression.type", "compression.codec")}
        self._weighs = codecs == {"none"}
        self._headers = header_writer(identity)
        self._room_seconds = identity.lease_seconds / 4
        # One object for all messages: a bound method each would bring a full garbage collection every three chunks.
        self._report: Callable[[KafkaError | None, Message], None] | None = self._reported
        self.firsts: Mapping[str, Row] = {}
        self._refused: _Refusal | None = None
        self._gave_up: str | None = None
        self._partitioner = partitioner_of(str(address.settings.get("partitioner", DEFAULT)))
        self._primes = identity.delivery == "at-least-once"
        self._make()

    def _make(self) -> None:
        """Make librdkafka's producer, for batches as large as every topic known so far takes."""
        self._batch_bytes = self._topics.batch_bytes
        # What the user says of it counts.
        batches = {} if "batch.size" in self._address.settings else {"batch.size": str(self._batch_bytes)}
        self.producer: Producer = made(Producer, self._address, Faults(), {**self._settings, **batches})
        self._priming = Priming(self._partitioner, self._topics.partitions, self._confirm) if self._primes else None

    def send(self, chunk: Sequence[Entry]) -> Failure | None:
        """Hand the chunk over, up to the first entry that cannot be a record; return why that cannot.

        What the brokers refused, and stopped at, is told by `refusal`.

        Raises:
            Retryable: the brokers do not answer; nothing was handed over.
            TimedOut: the queue stayed full: what was handed over is in doubt.
        """
        # A large request has glibc join the crumbs that the headers of the last chunk were. In the memory of a thread
        # beside the main one nothing else asks for so much, and each message would look for its place among them.
        bytearray(TIDYING_BYTES)
        rows = rows_of(chunk)
        self.firsts = {row[3]: row for row in reversed(rows)}
        bounds = self._bounds(self.firsts)
        lowest = min((bound for bound in bounds.values() if bound is not None), default=None)
        weighed = None if lowest is None or not self._weighs else lowest - NEARLY_BYTES
        if self._priming is not None:
            self._priming.begin()
        try:
            for place, row in enumerate(rows):
                reason = self._hand_over(row, bounds, weighed)
                if reason is not None:
                    return Failure(chunk[place], reason, permanent=True)
        except _Refused:
            return None
        self.serve()
        return None

    def _bounds(self, topics: Collection[str]) -> dict[str, int | None]:
        """Return how large a batch of each topic may be; of those that exist."""
        missing = self._topics.missing(topics)
        if self._topics.batch_bytes < self._batch_bytes:
            if "transactional.id" in self._settings or len(self.producer):
                most = self._topics.batch_bytes
                raise Retryable(f"a topic takes batches of {most} bytes at most: beginning again with such ones")
            self._make()
        return {topic: self._topics.limit(topic) for topic in topics if topic not in missing}

    def _hand_over(self, row: Row, bounds: dict[str, int | None], weighed: int | None) -> str | None:
        """Give librdkafka one message; return why that cannot be."""
        # By place: plain tuples are what a driver makes fastest.
        topic, payload = row[3], row[6]
        if topic not in bounds:
            return remedy_of(KafkaError.UNKNOWN_TOPIC_OR_PART)
        reason = fault(row)
        if reason is not None:
            return reason
        headers: Any = self._headers(row)
        if weighed is not None and payload is not None and len(payload) > weighed:
            size, most = size_of(row, headers), bounds[topic]
            if most is not None and size > most:
                return f"it needs {size} bytes and its topic takes {most}: raise the topic's max.message.bytes"
        partition = -1 if self._priming is None else self._priming.place(topic, row[4])
        try:
            self.producer.produce(topic, payload, row[4], partition, on_delivery=self._report, headers=headers)
        except BufferError:
            self._wait_for_room()
            return self._hand_over(row, bounds, weighed)
        except KafkaException as error:
            if not is_permanent(error.args[0]):
                raise ours(error.args[0], "producing") from error
            return words_of(error.args[0])
        except (ValueError, TypeError) as error:
            return f"it cannot be put on the wire: {error}"
        return None

    def _confirm(self) -> None:
        """Wait until all that was handed over is stored, so that more may follow it."""
        if not self.flush(self._room_seconds):
            raise TimedOut(f"the brokers have not taken the first messages in {self._room_seconds:g} s")
        if self._refused is not None or self._gave_up is not None:
            raise _Refused

    def _wait_for_room(self) -> None:
        queued, deadline = len(self.producer), time.monotonic() + self._room_seconds
        while len(self.producer) >= queued:
            if time.monotonic() > deadline:
                raise TimedOut(f"{queued} messages wait to be taken by the brokers, and none was taken")
            self.serve(ROOM_SECONDS)

    def _reported(self, error: KafkaError | None, message: Message) -> None:
        # A fatal error leaves an exception behind, under which callbacks are called all the same: whatever is called
        # from here would seem to have raised it. So nothing is: the last one has hold of those before it.
        if error is not None:
            self._refused = error, message, self._refused

    def serve(self, seconds: float = 0.0) -> None:
        """Let reports of refused messages come in."""
        try:
            self.producer.poll(seconds)
        except (KafkaException, SystemError) as error:
            self._give_up(error)

    def flush(self, seconds: float) -> bool:
        """Wait until all that was handed over is taken or one of it is refused; return whether that is so."""
        deadline = time.monotonic() + seconds
        while self._refused is None:
            remaining = deadline - time.monotonic()
            try:
                # In slices: behind a message that was refused others may wait for as long as the transaction lasts.
                left = self.producer.flush(max(0.0, min(remaining, FLUSH_SECONDS)))
            except (KafkaException, SystemError) as error:
                self._give_up(error)
                return True
            if left == 0:
                return True
            if remaining <= 0:
                return False
        return True

    def _give_up(self, error: BaseException) -> None:
        """The client has given up for good: what comes behind a message that was refused must not be stored."""
        cause = error if isinstance(error, KafkaException) else error.__cause__
        self._gave_up = cause.args[0].str() if isinstance(cause, KafkaException) else str(error)
        # All of them: that of the message at fault may come behind those of messages that were dropped because of it.
        deadline = time.monotonic() + REPORT_SECONDS
        while len(self.producer) and time.monotonic() < deadline:
            try:
                self.producer.poll(ROOM_SECONDS)
            except (KafkaException, SystemError):
                continue

    def refusal(self, firsts: Mapping[str, Row]) -> Failure | None:
        """Return which message of a chunk was refused first, as far as is known by its `firsts`, and why.

        Others of its batch may be the reason; only one that was sent alone is at fault itself.

        Raises:
            TimedOut: the client gave up, and did not say because of which message: fewer at a time will show.
        """
        if self._refused is None and self._gave_up is None:
            return None
        error, message = (None, None) if self._refused is None else _first(self._refused)
        if error is None or message is None or error.code() in DROPPED:
            raise TimedOut(f"the client gave up: {self._gave_up}")
        topic = message.topic()
        if error.code() in UNKNOWN_TOPIC:
            self._topics.look_again()
        row = firsts.get(str(topic)) or next(iter(firsts.values()))
        return Failure(entry_of(row), words_of(error), permanent=is_permanent(error))

    def close(self) -> None:
        """Drop what was not taken yet."""
        with suppress(KafkaException, SystemError):
            self.producer.purge()
            self.producer.flush(ROOM_SECONDS)
        # They hold this object, and so the client's threads and connections, until a garbage collection.
        self._report = self._priming = None
