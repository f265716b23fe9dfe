"""Tables, rows and connections for tests, by plain SQL: nothing of what is tested."""

import contextlib
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import MetaData, create_engine, make_url

from outbox.tables import inbox_tables, log_tables, outbox_tables


def install(url: str) -> str:
    """Make all three sets of tables; return the URL."""
    dialect = make_url(url).drivername.partition("+")[0]
    engine = create_engine(make_url(url).set(drivername={"postgresql": "postgresql+psycopg"}.get(dialect, dialect)))
    metadata = MetaData()
    for register in (outbox_tables, inbox_tables, log_tables):
        register(metadata)
    metadata.create_all(engine)
    engine.dispose()
    return url


@contextlib.contextmanager
def connected(url: str) -> Iterator[Any]:
    """A plain driver's connection in autocommit mode, with `?` as the place holder on SQLite and `%s` on PostgreSQL."""
    if url.startswith("sqlite"):
        with contextlib.closing(
            sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30, isolation_level=None)
        ) as file:
            yield file
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection


def rows(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows, if it has any."""
    with connected(url) as connection:
        text = statement if url.startswith("sqlite") else statement.replace("?", "%s")
        cursor = connection.execute(text, values)
        return list(cursor.fetchall()) if cursor.description else []


def write(url: str, topic: str, payload: str, *, key: str | None = None) -> None:
    """Write one message by plain SQL."""
    rows(url, "insert into outbox (topic, key, payload) values (?, ?, ?)", topic, key, payload.encode())


RECORDS = (
    'select t.name, r.key, r.payload, r.partition, r."offset", r.sequence, r.epoch from log_record r'
    ' join log_topic t using (topic_id) order by t.name, r.partition, r."offset"'
)


def payloads(url: str, topic: str | None = None) -> list[str]:
    """Return the payloads in the log, by topic, partition and offset."""
    return [bytes(row[2]).decode() for row in rows(url, RECORDS) if topic in (None, row[0])]


def by_key(url: str) -> dict[str | None, list[str]]:
    """Return the payloads in the log by key, in the log's order."""
    found: dict[str | None, list[str]] = {}
    for row in rows(url, RECORDS):
        found.setdefault(row[1], []).append(bytes(row[2]).decode())
    return found


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    """Wait for a condition; fail in words when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


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
