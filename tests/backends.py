"""Which real databases and brokers there are for the tests, and the report of those that took part.

OUTBOX_TEST_POSTGRESQL      URL of the server that most tests use; without it, an embedded one is started
OUTBOX_TEST_POSTGRESQL_15   URL of a server of that version, for the tests that run on every version; without it,
                            the one that `scripts/services start postgresql --version 15` started
OUTBOX_TEST_KAFKA           kafka:// URL of a broker; without it, the one that `scripts/services start kafka` started
OUTBOX_TEST_REQUIRE         what must be there, as `postgresql-15,kafka`, or `all`: missing is an error
"""

import os
from collections import Counter
from typing import NoReturn

import psycopg
import pytest
from local_kafka import LocalKafka
from local_postgresql import EMBEDDED_VERSION, VERSIONS, LocalPostgresql

SQLITE = "sqlite"
KAFKA = "kafka"
PROPERTY = "backend"


def main_postgresql() -> str | None:
    """Return the URL of the server that most tests use; None for the embedded one."""
    return os.environ.get("OUTBOX_TEST_POSTGRESQL")


def version_at(url: str) -> int:
    """Return the major version of the server at a URL."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        return connection.info.server_version // 10_000


def main_version() -> int:
    """Return the version of the server that most tests use."""
    url = main_postgresql()
    return version_at(url) if url else EMBEDDED_VERSION


def named_postgresql(version: int) -> str | None:
    """Return the URL of a running server of a version, beside the main one; None if there is none."""
    url = os.environ.get(f"OUTBOX_TEST_POSTGRESQL_{version}")
    if url:
        return url
    local = LocalPostgresql(version)
    return local.url() if local.is_running() else None


def kafka() -> str | None:
    """Return the URL of the broker that tests use; None if there is none."""
    url = os.environ.get("OUTBOX_TEST_KAFKA")
    if url:
        return url
    local = LocalKafka()
    return local.url() if local.is_running() else None


def name_of(version: int) -> str:
    """Return how a version is called in the report and in OUTBOX_TEST_REQUIRE."""
    return f"postgresql-{version}"


def why_kafka_is_absent() -> str:
    """Say how to have Kafka take part."""
    return "not running (scripts/services start kafka, or OUTBOX_TEST_KAFKA)"


def why_absent(version: int) -> str:
    """Say how to have a version take part."""
    return f"not running (scripts/services start postgresql --version {version}, or OUTBOX_TEST_POSTGRESQL_{version})"


def absent() -> dict[str, str]:
    """Return the backends that are not there, with how to have them."""
    postgresql = {
        name_of(version): why_absent(version)
        for version in VERSIONS
        if version != main_version() and named_postgresql(version) is None
    }
    return postgresql if kafka() else {**postgresql, KAFKA: why_kafka_is_absent()}


def required() -> set[str]:
    """Return the names of the backends that must be there, or `all`."""
    return {name.strip() for name in os.environ.get("OUTBOX_TEST_REQUIRE", "").split(",") if name.strip()}


def refuse_if_missing() -> None:
    """Stop the run before it begins when a required backend is not there."""
    names = required()
    known = {SQLITE, KAFKA, *map(name_of, VERSIONS)}
    unknown = names - known - {"all"}
    if unknown:
        raise pytest.UsageError(f"OUTBOX_TEST_REQUIRE names {sorted(unknown)}; known are {sorted(known)} and all")
    missing = {name: why for name, why in absent().items() if names & {name, "all"}} if names else {}
    if missing:
        words = "\n".join(f"  {name}: {why}" for name, why in missing.items())
        raise pytest.UsageError(f"OUTBOX_TEST_REQUIRE is set, and these are missing:\n{words}")


def skip_or_fail(name: str, why: str) -> NoReturn:
    """Skip the test, for a backend that is not there; fail it where the backend is required."""
    if required() & {name, "all"}:
        pytest.fail(f"OUTBOX_TEST_REQUIRE is set, and {name} is missing: {why}", pytrace=False)
    pytest.skip(f"{name}: {why}")


def takes_part(request: pytest.FixtureRequest, name: str) -> None:
    """Note that the test uses a backend. It travels with the test's report, from a worker too."""
    request.node.user_properties.append((PROPERTY, name))


def report(terminal: pytest.TerminalReporter) -> None:
    """Print which backends took part, in how many tests, and which did not and why."""
    counts: Counter[str] = Counter()
    for reports in terminal.stats.values():
        for test in reports:
            if getattr(test, "when", None) == "call":
                counts.update({value for name, value in test.user_properties if name == PROPERTY})
    terminal.section("backends")
    for name in sorted(counts):
        terminal.line(f"{name}: took part, tests: {counts[name]}")
    for name, why in absent().items():
        terminal.line(f"{name}: skipped, {why}")
