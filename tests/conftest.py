"""What all tests share: a real PostgreSQL, a database of its own for each test, and SQLite files."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from postgresql_server import PostgresqlServer
from psycopg import sql


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """An embedded PostgreSQL for this test process; never crashed by a test (see `own_postgresql_server`)."""
    server = PostgresqlServer(settings={"fsync": "off"}).start()
    yield server
    server.delete()


@pytest.fixture
def own_postgresql_server() -> Iterator[PostgresqlServer]:
    """A server for one test alone, which may crash it."""
    server = PostgresqlServer(settings={"fsync": "off"}).start()
    yield server
    server.delete()


def make_database(server_url: str) -> str:
    """Make an empty database and return its URL."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    return f"{server_url.rsplit('/', 1)[0]}/{name}"


def drop_database(url: str) -> None:
    """Drop a database that `make_database` made, with whoever is still connected."""
    server_url, name = url.rsplit("/", 1)
    with psycopg.connect(f"{server_url}/postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def postgresql_server_url(request: pytest.FixtureRequest) -> str:
    """Where the tests' PostgreSQL is: `OUTBOX_TEST_POSTGRESQL`, or the embedded one."""
    named = os.environ.get("OUTBOX_TEST_POSTGRESQL")
    if named:
        return named
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    return server.url()


@pytest.fixture
def postgresql_url(postgresql_server_url: str) -> Iterator[str]:
    """An empty PostgreSQL database of this test's own."""
    url = make_database(postgresql_server_url)
    yield url
    drop_database(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A new SQLite file."""
    return f"sqlite:///{tmp_path / 'app.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each dialect."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
