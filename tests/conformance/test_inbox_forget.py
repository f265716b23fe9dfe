"""`inbox forget`: what goes, what it waits for, and what a consumer sees that runs or begins meanwhile."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from databases import rows, wait_until
from inbox_road import Road, effect, on, running
from sqlalchemy import Connection, Table

from inbox import Inbox, forgetting
from inbox.forgetting import forget
from outbox.errors import ConfigurationError, Forgotten, Permanent
from relay.logs.contract import Log, LogOptions
from relay.logs.registry import open_log
from tests.unit.running import refused, run_here

GROUP = "billing"


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


def handled(road: Road, *payloads: str, group: str = GROUP) -> Inbox:
    """Let a group handle these, and end."""
    inbox = Inbox(group)
    on(inbox, "def", effect)
    road.write(*payloads)
    inbox.run(road.database, road.log, once=True)
    return inbox


def rows_of(road: Road, group: str = GROUP) -> tuple[int, int]:
    claims = rows(road.database, "select count(*) from inbox_offset where consumer_group = ?", group)[0][0]
    return road.ids(group), int(claims)


def test_a_group_that_is_forgotten_begins_anew_and_others_go_on(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "BATCH", 2)
    inbox = handled(road, *"abcde")
    other = handled(road, "f", group="other")
    forget(road.database, road.log, GROUP)
    assert rows_of(road) == (0, 0)
    assert road.open_log().committed(GROUP) == {}
    assert rows_of(road, "other")[0] == 6
    assert road.open_log().committed("other")
    effects = len(road.effects)
    inbox.run(road.database, road.log, once=True)
    assert len(road.effects) == effects + 6
    other.run(road.database, road.log, once=True)
    assert len(road.effects) == effects + 6


def test_a_group_with_a_live_member_is_refused_and_keeps_everything(road: Road) -> None:
    inbox = handled(road, "one")
    before = rows_of(road)
    with running(inbox.run, road.database, road.log):
        road.write("two")
        wait_until(lambda: road.effects == ["one", "two"], "the member handles")
        with pytest.raises(Permanent, match=r"group 'billing' is alive: .* stop it"):
            forget(road.database, road.log, GROUP)
        assert road.ids() == before[0] + 1
    forget(road.database, road.log, GROUP)
    assert rows_of(road) == (0, 0)


def test_a_group_known_in_one_place_alone_is_forgotten_there(road: Road) -> None:
    handled(road, "one")
    elsewhere = Road.__new__(Road)
    elsewhere.log = f"{road.log.partition('?')[0]}x"
    forget(road.database, elsewhere.log, GROUP)
    assert rows_of(road) == (0, 0)
    assert road.open_log().committed(GROUP)
    forget(road.database, road.log, GROUP)
    assert road.open_log().committed(GROUP) == {}
    rows(
        road.database,
        "insert into inbox (consumer_group, source, message_id) values (?, ?, ?)",
        GROUP,
        "/shop",
        "0" * 32,
    )
    forget(road.database, road.log, GROUP)
    assert rows_of(road) == (0, 0)


def test_a_group_that_nobody_knows_is_a_mistake_said_in_words(road: Road) -> None:
    with pytest.raises(ConfigurationError, match="no group 'billing' is known, neither to the handlers' database nor"):
        forget(road.database, road.log, GROUP)
    assert rows_of(road) == (0, 0)


class Killed(Exception):
    """Stands for a SIGKILL."""


def test_a_forget_that_is_killed_half_way_lets_nobody_register_and_is_finished_by_another(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that registered anew in between would take the ids that are left for messages it has handled."""
    monkeypatch.setattr(forgetting, "BATCH", 2)
    inbox = handled(road, *"abcde")
    executed = Connection.execute
    deletes = []

    def dying(self: Connection, statement: Any, *more: Any, **named: Any) -> Any:
        if getattr(statement, "is_delete", False) and isinstance(statement.table, Table):
            deletes.append(statement.table.name)
            if deletes.count("inbox") == 2:
                raise Killed
        return executed(self, statement, *more, **named)

    with monkeypatch.context() as dies:
        dies.setattr(Connection, "execute", dying)
        with pytest.raises(Killed):
            forget(road.database, road.log, GROUP)
    assert road.ids() == 3
    with pytest.raises(Permanent, match=r"'billing' is being forgotten.*`inbox forget billing`"):
        inbox.run(road.database, road.log, once=True)
    assert len(road.effects) == 5
    forget(road.database, road.log, GROUP)
    assert rows_of(road) == (0, 0)
    inbox.run(road.database, road.log, once=True)
    assert len(road.effects) == 10


def test_a_claim_made_while_forget_waits_for_the_one_before_it_goes_too(postgresql_url: str) -> None:
    """Deleted by one statement's snapshot, the newest claim would stay: and with it a place to resume, without ids."""
    road = Road(postgresql_url)
    handled(road, "one")
    ((incarnation, number, step),) = rows(
        road.database, "select incarnation, partition, step from inbox_offset where step = 1 and partition >= 0"
    )
    with psycopg.connect(road.database) as consumer:
        consumer.execute("select from inbox_offset where incarnation = %s and partition = %s and step = %s for update",
                         (incarnation, number, step))  # fmt: skip
        thread = threading.Thread(target=forget, args=(road.database, road.log, GROUP))
        thread.start()
        waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        wait_until(lambda: rows(road.database, waits)[0][0] == 1, "forget waits for the claim")
        consumer.execute(
            "insert into inbox_offset select consumer_group, incarnation, partition, step + 1, topic, end_offset,"
            " end_offset + 1, handled, duplicates, ignored from inbox_offset where incarnation = %s and partition = %s"
            " and step = %s",
            (incarnation, number, step),
        )
    thread.join(30)
    assert not thread.is_alive()
    assert rows_of(road) == (0, 0)


def test_a_consumer_that_runs_on_is_told_that_its_group_was_forgotten(road: Road) -> None:
    """One that was stopped for long is no live member to the log, and knows nothing of it when it goes on."""
    inbox = handled(road, "one")
    with (
        pytest.raises(Forgotten, match="group 'billing' is no longer registered"),
        running(inbox.run, road.database, road.log),
    ):
        road.write("two")
        wait_until(lambda: road.effects == ["one", "two"], "the consumer handles")
        forget(road.database, "memory://another", GROUP)
        road.write("three")
        wait_until(lambda: rows_of(road) == (0, 0), "the group is gone")
        wait_until(lambda: not any(one.name.startswith("inbox-handlers") for one in threading.enumerate()), "it ends")
    assert road.effects == ["one", "two"]
    assert rows_of(road) == (0, 0)


# The command


def test_the_command_says_what_became_of_it(sqlite_url: str) -> None:
    road = Road(sqlite_url)
    handled(road, "one")
    where = ("--database", road.database, "--log", road.log)
    done = run_here("inbox", "forget", GROUP, *where)
    assert (done.returncode, done.stdout) == (0, "")
    assert "group billing is forgotten" in done.stderr
    refused(run_here("inbox", "forget", GROUP, *where), 2, "no group 'billing' is known")
    refused(run_here("inbox", "forget", GROUP, "--database", road.database), 2, "no log is named: give --log URL")
    away = "sqlite:////no/such/folder/x.db"
    refused(
        run_here("inbox", "forget", GROUP, "--database", away, "--log", road.log, "--wait", "0"), 1, "unable to open"
    )


# The built-in log's side


@contextmanager
def builtin(road: Road) -> Iterator[Log]:
    with closing(open_log(road.database, LogOptions())) as log:
        yield log


def seen(road: Road, ago: timedelta, group: str = GROUP) -> None:
    at = datetime.now(UTC) - ago
    values = (
        group,
        f"member of {group}",
        "[]",
        at.replace(tzinfo=None).isoformat(" ") if "sqlite" in road.database else at,
    )
    rows(road.database, "insert into log_member (consumer_group, member, topics, seen_at) values (?, ?, ?, ?)", *values)
    rows(road.database, "insert into log_group (consumer_group, epoch) values (?, 1)", group)
    rows(
        road.database,
        'insert into log_group_offset (consumer_group, topic_id, partition, "offset") values (?, 1, 0, 7)',
        group,
    )


def left(road: Road, group: str = GROUP) -> int:
    tables = ("log_member", "log_group", "log_group_offset")
    return sum(
        rows(road.database, f"select count(*) from {one} where consumer_group = ?", group)[0][0] for one in tables
    )


def test_the_builtin_log_lets_go_of_members_that_are_gone_and_of_nothing_else(road: Road) -> None:
    seen(road, timedelta(seconds=11))
    seen(road, timedelta(seconds=11), "other")
    with builtin(road) as log:
        assert log.forget(GROUP) is True
        assert (left(road), left(road, "other")) == (0, 3)
        assert log.forget(GROUP) is False


@pytest.mark.parametrize("ago", [timedelta(seconds=1), timedelta(seconds=-5)])
def test_the_builtin_log_refuses_while_a_member_was_just_seen(road: Road, ago: timedelta) -> None:
    seen(road, ago)
    with builtin(road) as log, pytest.raises(Permanent, match="alive: member of billing is a member of it"):
        log.forget(GROUP)
    assert left(road) == 3


def test_the_builtin_log_goes_by_the_absolute_age_where_the_clock_was_set_back(road: Road) -> None:
    seen(road, timedelta(hours=-1))
    with builtin(road) as log:
        assert log.forget(GROUP) is True
