"""Reading in commit order on PostgreSQL: windows, chunks, bounds."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from databases import install, rows, write
from sqlalchemy import make_url

from outbox.errors import TimedOut
from outbox.message import Position
from outbox.process import postgresql
from outbox.tables import Place
from relay.checkpoint import BEGINNING, Checkpoint
from relay.reader.contract import Limits
from relay.reader.postgresql import PostgresqlReader, Selection
from relay.topics import parse_topics


@pytest.fixture
def url(postgresql_url: str) -> str:
    return install(postgresql_url)


def bulk(url: str, count: int, payload: str) -> None:
    """Write many messages by one statement."""
    statement = "insert into outbox (topic, payload) select 'orders', convert_to(?, 'UTF8') from generate_series(1, ?)"
    rows(url, statement, payload, count)


@contextmanager
def reading(url: str, topics: str = "*") -> Iterator[PostgresqlReader]:
    with closing(postgresql.connect(make_url(url), name="test")) as connection:
        yield PostgresqlReader(connection, Place(), parse_topics(topics))


def read_all(url: str, limits: Limits, *, forget_each: bool = False) -> list[list[bytes | None]]:
    """Read an outbox to its end chunk by chunk; `forget_each`: with nothing kept but the saved checkpoint."""
    checkpoint = Checkpoint(BEGINNING, None, Position(0), Position(0))
    chunks: list[list[bytes | None]] = []
    with reading(url) as first:
        reader = first
        for _ in range(10_000):
            fresh = checkpoint.snapshot_to is None
            checkpoint, selection = reader.look(checkpoint, limits)
            if selection is None:
                if fresh:
                    return chunks
                continue
            chunk = reader.fetch(selection, limits)
            checkpoint = chunk.after
            if chunk.entries:
                chunks.append([entry.message.payload for entry in chunk.entries])
            if forget_each:
                reader = PostgresqlReader(reader._connection, Place(), parse_topics("*"))
    raise AssertionError("the reader never came to the end")


@pytest.mark.parametrize("forget_each", [False, True])
@pytest.mark.parametrize("entries", [1, 2, 7, 49, 50, 51])
def test_a_checkpoint_is_restartable_at_every_chunk_of_every_size(url: str, entries: int, forget_each: bool):
    for number in range(50):
        write(url, "orders", str(number))
    chunks = read_all(url, Limits(entries=entries), forget_each=forget_each)
    assert all(len(chunk) <= entries for chunk in chunks)
    assert [payload for chunk in chunks for payload in chunk] == [str(n).encode() for n in range(50)]


def test_a_chunk_is_bounded_by_bytes_where_large_messages_follow_small_ones(url: str):
    bulk(url, 300, "s" * 10)
    bulk(url, 20, "l" * 20000)
    chunks = read_all(url, Limits(entries=500, bytes=50_000))
    sizes = [sum(len(payload or b"") for payload in chunk) for chunk in chunks]
    assert max(sizes) <= 50_000 + 20_000
    assert sum(len(chunk) for chunk in chunks) == 320


def test_a_message_larger_than_a_whole_chunk_goes_alone(url: str):
    bulk(url, 3, "l" * 20000)
    assert [len(chunk) for chunk in read_all(url, Limits(bytes=1_000))] == [1, 1, 1]


def test_a_large_window_keeps_its_order_across_chunks_and_takeovers(url: str):
    """INVARIANT I3: in a window of many chunks the order is by position, also for ids that are older than others."""
    with psycopg.connect(url) as early:
        early.execute("select pg_current_xact_id()")
        for number in range(30):
            write(url, "orders", str(number), key="k")
        early.execute("insert into outbox (topic, key, payload) values ('orders', 'k', '30')")
        early.commit()
    for number in range(31, 40):
        write(url, "orders", str(number), key="k")
    chunks = read_all(url, Limits(entries=7), forget_each=True)
    assert [payload for chunk in chunks for payload in chunk] == [str(n).encode() for n in range(40)]


def test_a_relay_that_only_reads_some_topics_walks_a_large_window_of_others_to_its_end(url: str, monkeypatch):
    monkeypatch.setattr("relay.reader.postgresql.SPARSE", 10)
    rows(url, "insert into outbox (topic, payload) select 'other', 'x' from generate_series(1, 95)")
    write(url, "orders", "1", key="k")
    rows(url, "insert into outbox (topic, payload) select 'other', 'x' from generate_series(1, 95)")
    write(url, "orders", "2", key="k")
    with reading(url, "orders") as reader:
        checkpoint = Checkpoint(BEGINNING, None, Position(0), Position(0))
        seen = []
        for _ in range(100):
            checkpoint, selection = reader.look(checkpoint, Limits(entries=1))
            if selection is None:
                break
            chunk = reader.fetch(selection, Limits(entries=1))
            seen += [entry.message.payload for entry in chunk.entries]
            checkpoint = chunk.after
    assert seen == [b"1", b"2"]
    assert checkpoint.snapshot_to is None


def test_a_selection_before_the_first_entry_is_empty(url: str):
    write(url, "orders", "1")
    with reading(url) as reader:
        checkpoint, selection = reader.look(Checkpoint(BEGINNING, None, Position(0), Position(0)), Limits())
        assert isinstance(selection, Selection)
        assert len(reader.fetch(reader.before(selection, Position(1)), Limits()).entries) == 0
    assert checkpoint.snapshot_to is not None


def test_a_window_that_is_too_large_to_be_looked_at_in_one_statement_is_walked(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    """A relay of a rare topic behind a long outage: a look that times out, again and again, would be a wedge (I8)."""
    rows(url, "insert into outbox (topic, payload) select 'other', 'x' from generate_series(1, 300)")
    write(url, "orders", "1", key="k")
    row = PostgresqlReader._row
    timed_out: list[str] = []

    def slow(self: PostgresqlReader, statement: str, parameters: dict[str, Any]) -> dict[str, Any]:
        if "window_entries" in statement:
            timed_out.append(statement)
            raise TimedOut("canceling statement due to statement timeout")
        return row(self, statement, parameters)

    monkeypatch.setattr(PostgresqlReader, "_row", slow)
    with reading(url, "orders") as reader:
        limits = Limits(entries=1)
        checkpoint, selection = reader.look(Checkpoint(BEGINNING, None, Position(0), Position(0)), limits)
        seen = []
        while selection is not None:
            chunk = reader.fetch(selection, limits)
            seen += [entry.message.payload for entry in chunk.entries]
            checkpoint, selection = chunk.after, None
            if checkpoint.snapshot_to is not None:
                checkpoint, selection = reader.look(checkpoint, limits)
    assert len(timed_out) == 2
    assert seen == [b"1"]
    assert checkpoint.snapshot_to is None
