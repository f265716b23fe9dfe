"""A relay's hand on Kafka: at least once, and at most once. `transactions` has exactly-once.

At least once nothing may pass a message that failed. librdkafka's `enable.gapless.guarantee` sees to that, but for a
fresh producer: see `priming`.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from outbox.errors import Retryable
from outbox.message import Entry
from relay.logs.contract import Failure, Producer, ProducerIdentity, Settlement
from relay.logs.kafka.address import Address
from relay.logs.kafka.sending import Sender
from relay.logs.kafka.topics import Topics
from relay.logs.rows import Row

AT_LEAST_ONCE: dict[str, object] = {
    "enable.idempotence": True,
    "enable.gapless.guarantee": True,
    "message.timeout.ms": 0,
}
AT_MOST_ONCE: dict[str, object] = {"message.send.max.retries": 0, "message.timeout.ms": 30_000}


def open_producer(address: Address, topics: Topics, identity: ProducerIdentity) -> Producer:
    """Open a relay's hand for the delivery that it was asked for.

    Raises:
        ConfigurationError: a setting of librdkafka's cannot be as it is.
        Permanent: a topic that the relay names may not be looked at, or cannot be made.
        Unreachable: no broker answers.
    """
    topics.examine(identity.topics)
    if identity.delivery == "exactly-once":
        from relay.logs.kafka.transactions import TransactionalProducer  # noqa: PLC0415 - one kind is enough for one relay

        return TransactionalProducer(address, topics, identity)
    settings = AT_MOST_ONCE if identity.delivery == "at-most-once" else AT_LEAST_ONCE
    return KafkaProducer(Sender(address, topics, identity, settings))


class KafkaProducer:
    """A relay's hand; see `Producer`."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._pending: deque[tuple[int, Mapping[str, Row]]] = deque()
        self._failure: Failure | None = None

    def produce(self, number: int, chunk: Sequence[Entry]) -> None:
        """Take a chunk; see `Producer.produce`."""
        if self._failure is not None:
            raise Retryable(f"chunk {number} is not taken: one before it failed")
        self._failure = self._sender.send(chunk)
        self._pending.append((number, self._sender.firsts))

    def settle(self, timeout_seconds: float) -> Settlement | None:
        """Wait for the oldest chunk that is not settled; see `Producer.settle`."""
        if not self._pending or not self._sender.flush(timeout_seconds):
            return None
        number, firsts = self._pending.popleft()
        refused = self._sender.refusal(firsts)
        if refused is not None:
            self._failure = refused
        # The one that was refused before it was sent is of the last chunk.
        return Settlement(number, refused or (None if self._pending else self._failure))

    def close(self) -> None:
        """Drop what is not on its way yet."""
        self._sender.close()
