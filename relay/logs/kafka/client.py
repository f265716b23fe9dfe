"""Clients of librdkafka's: made with our settings, talking through Python's logging, remembering what went wrong."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from outbox.errors import ConfigurationError
from relay.logs.kafka.address import Address

Client = TypeVar("Client")

BASICS = {
    # Errors reach us by callbacks, and a broker that is away for long is found again soon.
    "reconnect.backoff.ms": "50",
    "reconnect.backoff.max.ms": "1000",
    "log.connection.close": "false",
    "client.id": "outbox-relay-inbox",
}

logger = logging.getLogger("relay.kafka")
logger.setLevel(logging.CRITICAL + 1)  # librdkafka's own talk: what matters of it comes as an error, and is said once


class Faults:
    """What the connections of one client said last: the reason behind a request that got no answer."""

    def __init__(self) -> None:
        self._last: KafkaError | None = None
        self._down = False

    def __call__(self, error: KafkaError) -> None:
        """Take an error from librdkafka's callback."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - librdkafka's own codes are named so
            self._down = True
        else:
            self._last = error

    def forget(self) -> None:
        """Begin anew."""
        self._last, self._down = None, False

    @property
    def down(self) -> bool:
        """Whether no broker can be reached, as far as was tried."""
        return self._down

    @property
    def words(self) -> str | None:
        """The last error in words; None when there was none."""
        return None if self._last is None else self._last.str()


def made(make: Callable[..., Client], address: Address, faults: Faults, settings: Mapping[str, object]) -> Client:
    """Make a client: our basics, then the user's settings, then those that the caller needs.

    Raises:
        ConfigurationError: librdkafka does not know a setting, or refuses its value.
    """
    wanted: dict[str, Any] = {**BASICS, **address.settings, "bootstrap.servers": address.servers, **settings}
    try:
        return make({**wanted, "error_cb": faults}, logger=logger)
    except KafkaException as error:
        raise ConfigurationError(f"the log's settings: {error.args[0].str()}") from None
