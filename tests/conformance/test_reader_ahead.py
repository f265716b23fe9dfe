"""The next chunk is read by the server while this one is handed over: the same chunks, whatever comes in between."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from databases import install, rows, wait_until
from sqlalchemy import make_url

from outbox.errors import Retryable
from outbox.message import Position
from outbox.process import postgresql
from outbox.tables import Place
from relay.checkpoint import BEGINNING, Checkpoint
from relay.reader.contract import Limits
from relay.reader.postgresql import PostgresqlReader
from relay.topics import parse_topics

LIMITS = Limits(entries=10)
START = Checkpoint(BEGINNING, None, Position(0), Position(0))
ENTRIES = 95


@pytest.fixture
def url(postgresql_url: str) -> str:
    url = install(postgresql_url)
    rows(
        url,
        "insert into outbox (topic, payload) select 'orders', convert_to(n::text, 'UTF8')"
        " from generate_series(1, ?) as n",
        ENTRIES,
    )
    return url


@pytest.fixture
def reader(url: str) -> Iterator[PostgresqlReader]:
    with closing(postgresql.connect(make_url(url), name="ahead")) as connection:
        yield PostgresqlReader(connection, Place(), parse_topics("*"))


def read_on(
    reader: PostgresqlReader, checkpoint: Checkpoint, between: Callable[[PostgresqlReader], object]
) -> list[int]:
    """Read to the end of the window; after each chunk say what comes next, and do something else."""
    seen: list[int] = []
    while True:
        checkpoint, selection = reader.look(checkpoint, LIMITS)
        if selection is None:
            return seen
        chunk = reader.fetch(selection, LIMITS)
        seen += [int(entry.message.payload or b"0") for entry in chunk.entries]
        checkpoint = chunk.after
        if checkpoint.snapshot_to is None:
            return seen
        reader.expect(checkpoint, LIMITS)
        between(reader)


def nothing(_: PostgresqlReader) -> None:
    pass


def another_statement(reader: PostgresqlReader) -> None:
    """As the lease's next step is."""
    assert postgresql.execute(reader._connection, "select 1 as one").fetchone() == {"one": 1}


def another_place(reader: PostgresqlReader) -> None:
    """As when the log wants something else than was thought."""
    assert reader._expected is not None
    selection, limits = reader._expected
    reader.expect(replace(selection.checkpoint, last=Position(selection.checkpoint.last + 5)), limits)


def a_cancelled_statement(reader: PostgresqlReader) -> None:
    """As when its time is up."""
    ahead = reader._connection.ahead
    assert ahead is not None
    ahead._cursor = Cancelled()  # type: ignore[assignment]


class Cancelled:
    def fetchall(self) -> list[Any]:
        raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")


@pytest.mark.parametrize("between", [nothing, another_statement, another_place, a_cancelled_statement])
def test_what_is_read_ahead_is_what_would_be_read(
    reader: PostgresqlReader, between: Callable[[PostgresqlReader], object]
):
    """INVARIANT I1, I3: rows that are not those of the chunk would be left out, or come out of order."""
    assert read_on(reader, START, between) == list(range(1, ENTRIES + 1))
    assert reader._connection.ahead is None


def test_a_chunk_that_was_read_ahead_is_not_read_again(reader: PostgresqlReader, monkeypatch: pytest.MonkeyPatch):
    fetched: list[str] = []

    def counted(connection: postgresql.Connection, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        fetched.append(statement)
        return postgresql.fetch(connection, statement, parameters)

    monkeypatch.setattr("relay.reader.postgresql.fetch", counted)
    assert read_on(reader, START, nothing) == list(range(1, ENTRIES + 1))
    assert len(fetched) == 1, "the first one"


def test_the_transaction_of_what_was_read_ahead_ends(url: str, reader: PostgresqlReader):
    """Or the relay would hold back vacuum, and its next step would not be committed."""
    _, selection = reader.look(START, LIMITS)
    assert selection is not None
    reader.expect(reader.fetch(selection, LIMITS).after, LIMITS)
    assert reader._connection.ahead is not None
    postgresql.execute(reader._connection, "create table made (id int)")
    assert rows(url, "select count(*) from made") == [(0,)]
    assert rows(url, "select state, backend_xmin from pg_stat_activity where application_name = 'ahead'") == [
        ("idle", None)
    ]


def test_a_connection_that_is_lost_under_it_is_one_that_is_lost(url: str, reader: PostgresqlReader):
    _, selection = reader.look(START, LIMITS)
    assert selection is not None
    after = reader.fetch(selection, LIMITS).after
    reader.expect(after, LIMITS)
    server = "from pg_stat_activity where application_name = 'ahead'"
    rows(url, f"select pg_terminate_backend(pid) {server}")
    wait_until(lambda: rows(url, f"select pid {server}") == [], "it is gone")
    _, selection = reader.look(after, LIMITS)
    assert selection is not None
    with pytest.raises(Retryable):
        reader.fetch(selection, LIMITS)


def test_what_follows_a_window_is_not_read_ahead(reader: PostgresqlReader):
    """It begins with a snapshot of its own, which is not taken yet."""
    _, selection = reader.look(START, Limits(entries=ENTRIES))
    assert selection is not None
    reader.expect(reader.fetch(selection, Limits(entries=ENTRIES)).after, LIMITS)
    assert reader._connection.ahead is None
