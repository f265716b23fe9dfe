"""What all tests share: a real PostgreSQL, a database of its own for each test, SQLite files, and a real Kafka."""

import os
from collections.abc import Iterator
from pathlib import Path

import local_kafka
import pytest
from databases import drop_database, make_database
from kafka_server import KafkaServer
from local_postgresql import VERSIONS
from postgresql_server import PostgresqlServer

from tests import backends


def pytest_sessionstart(session: pytest.Session) -> None:
    """Ask once, not in every worker, for the backends that are required."""
    if "PYTEST_XDIST_WORKER" not in os.environ and not session.config.option.collectonly:
        backends.refuse_if_missing()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which backends took part."""
    backends.report(terminalreporter)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """An embedded PostgreSQL for this test process; never crashed by a test (see `own_postgresql_server`)."""
    server = PostgresqlServer(settings={"fsync": "off"}).start()
    yield server
    server.delete()


@pytest.fixture
def own_postgresql_server(request: pytest.FixtureRequest) -> Iterator[PostgresqlServer]:
    """A server for one test alone, which may crash it."""
    backends.takes_part(request, backends.name_of(backends.EMBEDDED_VERSION))
    server = PostgresqlServer(settings={"fsync": "off"}).start()
    yield server
    server.delete()


@pytest.fixture(scope="session")
def postgresql_server_url(request: pytest.FixtureRequest) -> str:
    """Where the tests' PostgreSQL is: `OUTBOX_TEST_POSTGRESQL`, or the embedded one."""
    named = backends.main_postgresql()
    if named:
        return named
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    return server.url()


@pytest.fixture(scope="session")
def main_version() -> int:
    """The version of the server that most tests use."""
    return backends.main_version()


@pytest.fixture
def postgresql_url(request: pytest.FixtureRequest, postgresql_server_url: str, main_version: int) -> Iterator[str]:
    """An empty PostgreSQL database of this test's own."""
    backends.takes_part(request, backends.name_of(main_version))
    url = make_database(postgresql_server_url)
    yield url
    drop_database(url)


@pytest.fixture(params=VERSIONS, ids=backends.name_of)
def each_postgresql_url(request: pytest.FixtureRequest, main_version: int) -> Iterator[str]:
    """An empty database on each version of PostgreSQL in turn; for tests of what the versions do differently."""
    version: int = request.param
    server_url = backends.named_postgresql(version)
    if version == main_version:
        server_url = request.getfixturevalue("postgresql_server_url")
    if server_url is None:
        pytest.skip(backends.why_absent(version))
    backends.takes_part(request, backends.name_of(version))
    url = make_database(server_url)
    yield url
    drop_database(url)


@pytest.fixture
def sqlite_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new SQLite file."""
    backends.takes_part(request, backends.SQLITE)
    return f"sqlite:///{tmp_path / 'app.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each dialect."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def kafka_url(request: pytest.FixtureRequest) -> str:
    """A broker that other tests use too: topics, groups and transactional ids have to be of the test's own."""
    url = backends.kafka()
    if url is None:
        backends.skip_or_fail(backends.KAFKA, backends.why_kafka_is_absent())
    backends.takes_part(request, backends.KAFKA)
    return url


@pytest.fixture
def kafka_programs(request: pytest.FixtureRequest) -> Path:
    """What a `KafkaServer` runs: for a test that starts brokers of its own, with settings of their own."""
    why_not = local_kafka.why_no_programs()
    if why_not is not None:
        backends.skip_or_fail(backends.KAFKA, why_not)
    backends.takes_part(request, backends.KAFKA)
    return local_kafka.programs_of_kafka()


@pytest.fixture
def own_kafka_server(kafka_programs: Path) -> Iterator[KafkaServer]:
    """A broker for one test alone, which may stop, kill and start it."""
    server = KafkaServer(programs=kafka_programs)
    try:
        yield server.start()
    finally:
        server.delete()
