"""The plans of what we send to PostgreSQL, as the server made them: none of them may grow with what was read or kept.

A server of its own runs with `auto_explain`, so that these are the product's statements with its own values and session
settings, and what each node really touched is known. Autovacuum is off: statistics are what the test makes them.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from databases import install, make_database, rows
from postgresql_server import PostgresqlServer

from inbox import Delivery, Inbox
from relay import Relay
from relay.reader.contract import MOST_ENTRIES
from tests import backends

GROWING = {"outbox", "relay_checkpoint", "log_record", "inbox", "inbox_offset"}
SIZES = [0, 10_000, *([1_000_000] if os.environ.get("OUTBOX_TEST_LONG") else [])]
NEW = 40
FEW = 3 * NEW
"""What a statement may touch that has NEW entries to deal with: no more, however many there are beside them."""
PLAN = re.compile(r"duration: [\d.]+ ms  plan:\n((?:\t.*\n)+)")
SETTINGS = {
    "fsync": "off",
    "autovacuum": "off",
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
}


@dataclass(frozen=True)
class Plan:
    """One statement, as the server ran it."""

    text: str
    nodes: list[dict[str, Any]]

    def tables(self) -> set[str]:
        return {node["Relation Name"] for node in self.nodes if "Relation Name" in node}

    def prunes(self) -> bool:
        """Return whether it deletes: then it touches what it deletes."""
        return any(node.get("Operation") == "Delete" for node in self.nodes)

    def most(self) -> int:
        """Return how many rows its busiest node touched."""
        return max(map(_touched, self.nodes))

    def busiest(self) -> dict[str, Any]:
        """Return the node that touched the most rows, without those below it."""
        node = max(self.nodes, key=_touched)
        return {name: said for name, said in node.items() if name != "Plans"}


def _touched(node: dict[str, Any]) -> int:
    thrown_away = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return round((node["Actual Rows"] + thrown_away) * node["Actual Loops"])


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _nodes(inner)


@pytest.fixture(scope="module")
def explaining_server(request: pytest.FixtureRequest) -> Iterator[PostgresqlServer]:
    server = PostgresqlServer(settings=SETTINGS).start()
    yield server
    server.delete()


class Explained:
    """A database, and the plans of what was sent to it."""

    def __init__(self, server: PostgresqlServer, statistics: str) -> None:
        self._server = server
        self._statistics = statistics
        self.url = install(make_database(server.url()))
        self._read = 0

    def plans(self) -> list[Plan]:
        """Return the plans of the statements on our growing tables since the last call."""
        said = self._server.log.read_text()
        new, self._read = said[self._read :], len(said)
        found = []
        for text in PLAN.findall(new):
            explained = json.loads(text)
            plan = Plan(explained["Query Text"], list(_nodes(explained["Plan"])))
            if plan.tables() & GROWING and not plan.prunes():
                found.append(plan)
        return found

    def fill(self, statement: str, size: int) -> None:
        """Run a statement that makes so many rows, in two parts: stale statistics know the first alone."""
        table = statement.split()[2]
        first = size // 10
        for part, known in ((first, ("stale", "fresh")), (size - first, ("fresh",))):
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute("set auto_explain.log_min_duration = -1")
                connection.execute(statement.encode(), {"rows": part})
                if self._statistics in known:
                    connection.execute(f"analyze {table}".encode())

    def fill_slowly(self, entries: int) -> None:
        """Write entries ten to a transaction, as services do; fresh statistics know all of them."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("set auto_explain.log_min_duration = -1")
            connection.execute(TENS.format(transactions=entries // 10).encode())
            if self._statistics == "fresh":
                connection.execute("analyze outbox")

    def relay(self) -> list[Plan]:
        self.plans()
        Relay(self.url, self.url).run(once=True)
        return self.plans()


@pytest.fixture(params=["none", "stale", "fresh"])
def statistics(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def explained(request: pytest.FixtureRequest, explaining_server: PostgresqlServer, statistics: str) -> Explained:
    backends.takes_part(request, backends.name_of(backends.EMBEDDED_VERSION))
    return Explained(explaining_server, statistics)


ENTRIES = (
    "insert into outbox (topic, key, payload)"
    " select 'orders', (n %% 100)::text, 'x' from generate_series(1, %(rows)s) as n"
)
STEPS = (
    "insert into relay_checkpoint (incarnation, step, epoch, backend, lease_seconds, lease_until, snapshot_from, last,"
    " position) select incarnation, newest + n, 0, 0, 0, clock_timestamp(), snapshot_from, last, position"
    " from (select *, step as newest from relay_checkpoint order by step desc limit 1) as c,"
    " generate_series(1, %(rows)s) as n"
)
WIDE = ENTRIES.replace("'x'", "convert_to(repeat('x', 200), 'UTF8')")
TENS = """
do $$ begin
  for n in 1..{transactions} loop
    insert into outbox (topic, key, payload) select 'orders', m::text, convert_to(repeat('x', 200), 'UTF8')
      from generate_series(1, 10) as m;
    commit;
  end loop;
end $$
"""
IDS = (
    "insert into inbox (consumer_group, source, message_id)"
    " select 'billing', '/x', gen_random_uuid() from generate_series(1, %(rows)s)"
)
CLAIMS = (
    "insert into inbox_offset (consumer_group, incarnation, partition, step, topic, begin_offset, end_offset, handled,"
    " duplicates, ignored) select consumer_group, incarnation, partition, newest + n, topic, end_offset, end_offset,"
    " handled, duplicates, ignored from (select distinct on (consumer_group, incarnation, partition) *, step as newest"
    " from inbox_offset where partition >= 0 order by consumer_group, incarnation, partition, step desc) as c,"
    " generate_series(1, %(rows)s / 8) as n"
)


def write_some(url: str, entries: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(ENTRIES.encode(), {"rows": entries})


def refuse_scans(plans: list[Plan]) -> None:
    """See that no node touches more than the new entries: no scan of what is kept, and no sort of it."""
    for plan in plans:
        assert plan.most() <= FEW, f"{plan.most()} rows touched by {plan.busiest()} of {plan.text}"


def an_inbox(*, batch: bool = True) -> Inbox:
    inbox = Inbox("billing")

    @inbox.handler("orders", batch=batch)
    def handle(delivery: Delivery[Any]) -> None:
        """Nothing: our own statements are looked at."""

    return inbox


@pytest.mark.parametrize("size", SIZES)
def test_no_statement_of_relay_and_inbox_grows_with_what_was_read_before(explained: Explained, size: int):
    """What would break: retention of a week, or a fresh table, and each look takes seconds."""
    url = explained.url
    explained.fill(ENTRIES, size)
    explained.relay()
    explained.fill(STEPS, size)
    inbox = an_inbox()
    inbox.run(url, url, once=True, start="latest")
    explained.fill(CLAIMS, size)
    explained.fill(IDS, size)
    with psycopg.connect(url) as open_one:
        open_one.execute(ENTRIES.encode(), {"rows": NEW // 2})
        write_some(url, 1)
        explained.relay()
        open_one.commit()
    write_some(url, NEW // 2)
    moving = explained.relay()
    inbox.run(url, url, once=True)
    handling = explained.plans()
    refuse_scans(moving + handling)
    assert set().union(*(plan.tables() for plan in moving)) >= {"outbox", "relay_checkpoint", "log_record"}
    assert set().union(*(plan.tables() for plan in handling)) >= {"inbox", "inbox_offset", "log_record"}
    assert rows(url, "select count(*) from log_record") == [(size + NEW + 1,)]


@pytest.mark.parametrize("statistics", ["none"], indirect=True)
def test_a_claim_keeps_to_its_index_while_its_table_grows(explained: Explained):
    """What would break: a prepared plan from when the table was new reads all claims for each batch.

    With statistics of an empty table it does, until the next ANALYZE: the session is the handlers' too, so it has the
    planner's settings that they know. That many are few: claims are pruned every ten seconds.
    """
    url = explained.url
    write_some(url, 5 * FEW)
    explained.relay()
    an_inbox(batch=False).run(url, url, once=True)
    claims = [plan for plan in explained.plans() if "inbox_offset" in plan.tables()]
    assert 5 * FEW < len(claims) < 6 * FEW, "one statement a batch, beside registration and pruning"
    refuse_scans(claims)


@pytest.mark.parametrize("size", [size for size in SIZES if size > MOST_ENTRIES])
def test_a_large_window_is_walked_a_chunk_at_a_time(explained: Explained, size: int):
    """What would break: a relay that was down for a day sorts the whole day for each of its chunks."""
    explained.fill(ENTRIES, size)
    plans = [plan for plan in explained.relay() if not plan.text.startswith("insert into outbox")]
    whole = [plan for plan in plans if plan.most() > MOST_ENTRIES + 1]
    said = [(plan.most(), plan.busiest(), plan.text) for plan in whole]
    assert len(whole) <= 1, f"more than the one statement that finds the window's extent reads all of it: {said}"
    looks = [plan for plan in plans if "outbox" in plan.tables()]
    assert len(looks) <= size // MOST_ENTRIES + 4, "one message a chunk; before it two looks, and a topic to be made"
    assert rows(explained.url, "select count(*) from log_record") == [(size,)]


@pytest.mark.parametrize("statistics", ["fresh"], indirect=True)
def test_a_backlog_is_counted_from_its_own_beginning(explained: Explained):
    """What would break: with statistics that know of a backlog, each look walks through a week that was read before."""
    bulk, backlog = 2 * MOST_ENTRIES, 3 * MOST_ENTRIES
    read = 10 * bulk
    for _ in range(10):
        explained.fill(WIDE, bulk)
    explained.relay()
    explained.fill_slowly(backlog)
    plans = explained.relay()
    said = [(plan.most(), plan.busiest(), plan.text) for plan in plans if plan.most() > backlog + FEW]
    assert not said
    assert rows(explained.url, "select count(*) from log_record") == [(read + backlog,)]
