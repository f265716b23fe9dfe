"""The client that questions about the cluster are asked by.

Most of them go to the broker that librdkafka has heard of as the controller. When that one dies, the client asks it on,
with a core kept busy, until it hears from another broker who the controller is now: where no topic of its own makes it
look, after minutes (tried with librdkafka 2.16 and three brokers). A fresh client asks its first addresses.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from outbox.errors import Unreachable
from relay.logs.kafka.address import Address
from relay.logs.kafka.client import Faults, made
from relay.logs.kafka.errors import ours

Answer = TypeVar("Answer")

ASK_SECONDS = 5.0
"""How long one answer is waited for; less where no broker can be reached."""
SLICE_SECONDS = 0.05
METADATA_SECONDS = 1.0
NOBODYS_TOPIC = "outbox-relay.nobodys"
"""What is asked for where the cluster is meant: all topics are too many. It is never made."""
SETTINGS = {"allow.auto.create.topics": "false"}


class Admin:
    """One client of librdkafka's.

    Attributes:
        client: librdkafka's.
        has_answered: whether it has brought an answer yet.
    """

    def __init__(self, address: Address) -> None:
        self._faults = Faults()
        self.client: AdminClient = made(AdminClient, address, self._faults, SETTINGS)
        self.has_answered = False

    def forget_faults(self) -> None:
        """A question begins: what connections have said before is not the reason why it gets no answer."""
        self._faults.forget()

    def answer(self, doing: str, future: "Future[Answer]") -> Answer:
        """Wait for what was asked of the brokers; no longer than until none of them can be reached.

        One that knew its way is not waited for once a connection fails: another may know a better one.

        Raises:
            Unreachable: there is no answer.
            OutboxError: the answer is an error; see `ours`.
        """
        deadline = time.monotonic() + ASK_SECONDS
        while not wait([future], SLICE_SECONDS).done:
            self.client.poll(0)
            lost = self.has_answered and self._faults.words is not None
            if lost or self._faults.down or time.monotonic() > deadline:
                raise self._unreachable(doing)
        try:
            found = future.result()
        except KafkaException as error:
            raise ours(error.args[0], doing, self._faults.words) from error
        self.has_answered = True
        return found

    def cluster_id(self, doing: str) -> str | None:
        """Return the cluster's id; None where the brokers know none.

        By the client's call for metadata: its newer one ends the process with a failed assertion where a broker answers
        that it knows no live broker, itself included, as one does that has just come back (tried with Kafka 3.9 and
        librdkafka 2.16).

        Raises:
            Unreachable: there is no answer.
            OutboxError: the answer is an error; see `ours`.
        """
        deadline = time.monotonic() + ASK_SECONDS
        while True:
            try:
                found = self.client.list_topics(NOBODYS_TOPIC, timeout=METADATA_SECONDS)
            except KafkaException as error:
                self.client.poll(0)
                failed = ours(error.args[0], doing, self._faults.words)
                if not isinstance(failed, Unreachable):
                    raise failed from error
                if self._faults.down or time.monotonic() > deadline:
                    raise self._unreachable(doing) from error
            else:
                self.has_answered = True
                return found.cluster_id

    def _unreachable(self, doing: str) -> Unreachable:
        return Unreachable(f"{doing}: no broker answers{f'; {self._faults.words}' if self._faults.words else ''}")


class Admins:
    """The client that is asked, and another in its place where it has lost its way. Safe to use from several threads.

    Raises:
        ConfigurationError: a setting of the address is unknown, or has a value that it cannot have.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self.newest = Admin(address)

    def asked(self, ask: Callable[[Admin], Answer]) -> Answer:
        """Ask; once more with another client, if one that brought answers before brings none.

        Raises:
            Unreachable: a fresh client got no answer either.
        """
        admin = self.newest
        admin.forget_faults()
        try:
            return ask(admin)
        except Unreachable:
            self.renew(admin)
            if not admin.has_answered:
                raise
        return ask(self.newest)

    def renew(self, admin: Admin) -> None:
        """Have another client asked from now on, unless another thread has seen to that."""
        if self.newest is admin:
            self.newest = Admin(self._address)
