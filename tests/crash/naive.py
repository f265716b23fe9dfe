"""Ways to read an outbox that look right and are not, as small relays that copy into a table; and one that is right.

Each reads the outbox of its database on its own connection, and `publish`es on another, as to a broker: what is
published stays so. They prove that the workload and the checker find what they are there to find.
"""

import random
import time
from collections.abc import Sequence
from typing import Any

import psycopg

SCHEMA = "create table copied (place bigint generated always as identity, topic text, key text, payload bytea)"
CHUNK = 100
Row = tuple[Any, ...]


class NaiveReader:
    """Base of the readers: two connections and where it stands."""

    def __init__(self, url: str, seed: int = 1) -> None:
        self.source = psycopg.connect(url, autocommit=True)
        self.target = psycopg.connect(url, autocommit=True)
        self.choose = random.Random(seed)

    def step(self) -> int:
        """Copy what is new; return how much that was."""
        raise AssertionError("each reader has its own")

    def rows(self, statement: str, *values: object) -> list[Row]:
        return self.source.execute(statement.encode(), values).fetchall()

    def publish(self, rows: Sequence[Row]) -> None:
        """Send (topic, key, payload) to the table that stands for a broker."""
        with self.target.cursor() as cursor:
            cursor.executemany("insert into copied (topic, key, payload) values (%s, %s, %s)", rows)

    def close(self) -> None:
        self.source.close()
        self.target.close()


class ByPosition(NaiveReader):
    """`position > last`: positions commit out of order, so what commits late lies behind the reader: lost."""

    last = 0

    def step(self) -> int:
        rows = self.rows(
            "select topic, key, payload, position from outbox where position > %s order by position limit %s",
            self.last,
            CHUNK,
        )
        self.publish([row[:3] for row in rows])
        self.last = rows[-1][3] if rows else self.last
        return len(rows)


class ByTransaction(NaiveReader):
    """`(transaction_id, position)` below the oldest open transaction: nothing lost, but an early xid with a late lock
    comes before those that it waited for.
    """

    last = ("0", 0)

    def step(self) -> int:
        rows = self.rows(
            "select topic, key, payload, transaction_id::text, position from outbox"
            " where transaction_id < pg_snapshot_xmin(pg_current_snapshot())"
            " and (transaction_id, position) > (%s::xid8, %s)"
            " order by transaction_id, position limit %s",
            *self.last,
            CHUNK,
        )
        self.publish([row[:3] for row in rows])
        self.last = rows[-1][3:] if rows else self.last
        return len(rows)


class ByCreatedAt(NaiveReader):
    """A clock: `created_at` is when a transaction began, so those that end late are lost."""

    last: tuple[Any, int] = ("-infinity", 0)

    def step(self) -> int:
        rows = self.rows(
            "select topic, key, payload, created_at, position from outbox"
            " where (created_at, position) > (%s::timestamptz, %s) order by created_at, position limit %s",
            *self.last,
            CHUNK,
        )
        self.publish([row[:3] for row in rows])
        self.last = rows[-1][3:] if rows else self.last
        return len(rows)


class ByGapTimeout(NaiveReader):
    """`position > last`, waiting at a gap, which is given up after a while: rolled back, or merely slow? Lost."""

    last = 0
    patience_seconds = 0.005
    since: float | None = None

    def step(self) -> int:
        rows = self.rows(
            "select topic, key, payload, position from outbox where position > %s order by position limit %s",
            self.last,
            CHUNK,
        )
        taken = 0
        for row in rows:
            if row[3] != self.last + 1 and not self._gap_given_up():
                break
            self.since = None
            self.publish([row[:3]])
            self.last = row[3]
            taken += 1
        return taken or (1 if rows else 0)

    def _gap_given_up(self) -> bool:
        self.since = self.since or time.monotonic()
        return time.monotonic() - self.since > self.patience_seconds


class BySkipLocked(NaiveReader):
    """`for update skip locked`, publish, delete: of two such readers one overtakes the other within a key."""

    def step(self) -> int:
        with self.source.transaction():
            rows = self.rows(
                "select topic, key, payload, position from outbox order by position for update skip locked limit %s",
                self.choose.randint(1, 5),
            )
            time.sleep(self.choose.random() * 0.005)
            self.publish([row[:3] for row in rows])
            self.rows("delete from outbox where position = any(%s) returning 1", [row[3] for row in rows])
        return len(rows)


class ByWindow(NaiveReader):
    """Windows between snapshots, the right way: what S1 sees and S0 does not, by position."""

    s0 = "1:1:"

    def step(self) -> int:
        ((s1,),) = self.rows("select pg_current_snapshot()::text")
        rows = self.rows(
            "select topic, key, payload from outbox where pg_visible_in_snapshot(transaction_id, %s::pg_snapshot)"
            " and not pg_visible_in_snapshot(transaction_id, %s::pg_snapshot)"
            # The same again, as what an index can find.
            " and transaction_id >= pg_snapshot_xmin(%s::pg_snapshot) order by position",
            s1,
            self.s0,
            self.s0,
        )
        self.publish(rows)
        self.s0 = s1
        return len(rows)
