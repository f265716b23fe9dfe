"""The URL of a Kafka log: brokers, settings of ours, and settings of librdkafka's that pass through."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from outbox.errors import ConfigurationError

MOST_PARTITIONS = 10_000
MOST_REPLICATION = 100
OURS = frozenset({"partitions", "replication", "config"})
"""The settings that are ours: what topics are made with, and a file with more of librdkafka's."""

HELD = {
    "bootstrap.servers": "write the brokers before the question mark: kafka://host:9092,host2:9092",
    "metadata.broker.list": "write the brokers before the question mark: kafka://host:9092,host2:9092",
    "enable.idempotence": "it is on, or a retry could double or reorder records",
    "enable.gapless.guarantee": "it is on, or a record could overtake one that failed",
    "transactional.id": "it is the relay's own, so that two relays do not end each other's transactions",
    "message.timeout.ms": "a broker's outage is waited out, and uses up nobody's attempts",
    "delivery.timeout.ms": "a broker's outage is waited out, and uses up nobody's attempts",
    "message.send.max.retries": "a broker's outage is waited out, and uses up nobody's attempts",
    "retries": "a broker's outage is waited out, and uses up nobody's attempts",
    "delivery.report.only.error": "the relay asks for the reports that it needs",
    "group.id": "it is the Inbox's name, or --group",
    "enable.auto.commit": "offsets are reported after the handlers' transaction",
    "auto.commit.enable": "offsets are reported after the handlers' transaction",
    "enable.auto.offset.store": "offsets are reported after the handlers' transaction",
    "auto.offset.reset": "a group begins where --start says and goes on at its own claims",
    "isolation.level": "only committed records are read",
    "enable.partition.eof": "the consumer needs it",
    "partition.assignment.strategy": "it is cooperative-sticky: what stays with a member goes on without a pause",
    "group.protocol": "it is classic",
}
"""Settings of librdkafka's that a URL may not change, and why."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the brokers are, and how they are spoken to.

    Attributes:
        servers: as librdkafka's `bootstrap.servers`.
        settings: other settings of librdkafka's, by their names.
        partitions: what missing topics are made with; None: they are not made by us.
        replication: likewise; None is the brokers' own default.
    """

    servers: str
    settings: Mapping[str, str]
    partitions: int | None = None
    replication: int | None = None


def parse_address(text: str) -> Address:
    """Read a Kafka URL. User and password in it are SASL's.

    Raises:
        ConfigurationError: it cannot be read. The words never show a value that may be a secret.
    """
    parts = urlsplit(text)
    credentials, _, servers = parts.netloc.rpartition("@")
    if not all(_is_server(server) for server in servers.split(",")):
        raise ConfigurationError("the log's URL names no brokers: write kafka://host:9092, several with commas between")
    if parts.path not in ("", "/"):
        raise ConfigurationError(
            f"the log's URL has a path, {parts.path!r}: Kafka has none; settings follow a question mark"
        )
    given = _query(parts)
    settings = {**_of_file(given.get("config")), **_sasl(credentials)}
    settings |= {name: value for name, value in given.items() if name not in OURS}
    for name in sorted(settings):
        if name in HELD:
            raise ConfigurationError(f"the log's setting {name!r} is not yours to set: {HELD[name]}")
    return Address(
        servers,
        settings,
        _count("partitions", given.get("partitions"), MOST_PARTITIONS),
        _count("replication", given.get("replication"), MOST_REPLICATION),
    )


def _is_server(server: str) -> bool:
    host, _, port = server.rpartition(":") if _has_port(server) else (server, "", "9092")
    return bool(host.strip("[]")) and port.isdecimal() and 0 < int(port) <= 65_535  # noqa: PLR2004 - TCP's


def _has_port(server: str) -> bool:
    return ":" in server.rpartition("]")[2]


def _query(parts: SplitResult) -> dict[str, str]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ConfigurationError("the log's settings cannot be read: write ?name=value&name=value") from None
    return dict(pairs)


def _sasl(credentials: str) -> dict[str, str]:
    if not credentials:
        return {}
    user, _, password = credentials.partition(":")
    return {"sasl.username": unquote(user), "sasl.password": unquote(password)}


def _of_file(name: str | None) -> dict[str, str]:
    """Read a file of settings as Kafka's own tools do: `name=value`, `#` begins a comment."""
    if name is None:
        return {}
    try:
        lines = Path(name).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"the log's config={name!r} cannot be read: {words}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith(("#", "!")):
            continue
        key, equals, value = line.partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(f"line {number} of the log's config={name!r} is not name=value")
        found[key.strip()] = value.strip()
    return found


def _count(name: str, text: str | None, most: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= most):
        raise ConfigurationError(f"the log's {name}={text!r}: write a whole number from 1 to {most}")
    return int(text)
