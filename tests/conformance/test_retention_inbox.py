"""Which ids a group forgets, and which it must not: one test a rule, on both dialects."""

import logging
import random
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta

import psycopg
import pytest
from databases import rows, wait_until
from inbox_road import INSERT, TOPIC, Road, effect, message, on, running
from retention_road import DAY, ago, drain, prune_log, unhurried, write
from sqlalchemy import text
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox
from inbox.retention import chores, opened
from inbox.retention.chores import Chores, Group, too_short
from outbox.process.urls import parse_url
from outbox.tables import Place
from relay.logs.builtin import BuiltinLog
from relay.logs.contract import Bounds, LogOptions, Partition
from relay.logs.registry import open_log

KEPT = 8 * DAY


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


def remember(road: Road, *ages: timedelta, group: str = "billing") -> None:
    """Put an id of each age into the group's table."""
    for age in ages:
        identity = uuid.uuid4()
        plain = road.database.startswith("sqlite")
        rows(
            road.database,
            "insert into inbox (consumer_group, source, message_id, received_at) values (?, '/shop', ?, ?)",
            group,
            identity.hex if plain else identity,
            ago(age) + ("" if plain else "+00"),
        )


def chores_of(road: Road, retain: timedelta = KEPT) -> Chores:
    return Chores(Group("billing", parse_url(road.database), Place(None, ""), [TOPIC], retain), road.open_log())


def passes(one: Chores, number: int = 2) -> None:
    """Do some passes; the first may have learnt only then, at its end, how new the newest id is."""
    for _ in range(number):
        one._due = 0.0
        one.prune(unhurried())


def handled(road: Road, **options: object) -> None:
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    inbox.run(road.database, road.log, once=True, **options)


def test_ids_older_than_the_retention_go(road: Road):
    remember(road, 20 * DAY, 9 * DAY, 7 * DAY, timedelta(0))
    passes(chores_of(road))
    assert road.ids() == 2


def test_age_is_counted_against_the_newest_id_and_not_the_clock(road: Road):
    """INVARIANT I4: a group that stood still for a month needs what it knew when it stopped."""
    remember(road, 37 * DAY, 35 * DAY, 30 * DAY)
    passes(chores_of(road))
    assert road.ids() == 3
    remember(road, 26 * DAY)
    passes(chores_of(road))
    assert road.ids() == 2, "37 and 35 days are more than 8 before the newest"


def test_only_the_groups_own_ids_go_and_only_they_count(road: Road):
    remember(road, 30 * DAY, 29 * DAY, group="billing")
    remember(road, 30 * DAY, timedelta(0), group="mailing")
    passes(chores_of(road))
    assert (road.ids("billing"), road.ids("mailing")) == (2, 2)


def test_nothing_goes_before_the_group_has_read_what_the_log_holds(road: Road):
    """INVARIANT I4: a repeat of an old message may lie in the log behind a new one that was handled already."""
    remember(road, 30 * DAY, timedelta(0))
    one = chores_of(road)
    road.write("new")
    passes(one)
    assert road.ids() == 2
    handled(road, retain=365 * DAY)
    road.write("newer")
    passes(one)
    assert road.ids() == 2, "what was to be read then is read, and the old id is gone"


def test_a_repeat_after_a_standstill_takes_no_effect(road: Road):
    """INVARIANT I4: the group comes back after a fortnight, and finds the repeats of its last messages behind new ones.

    Pruned as soon as the newest id is new, the old ids would be gone between one batch and the next.
    """
    first = road.put(*(message(f"old {n}") for n in range(3)))
    handled(road)
    when = ago(14 * DAY) + ("" if road.database.startswith("sqlite") else "+00")
    rows(road.database, "update inbox set received_at = ?", when)
    road.put(*(message(f"new {n}") for n in range(3)))
    one = chores_of(road)
    handled(road, retain=365 * DAY)
    road.put(*first)
    passes(one)
    handled(road, retain=365 * DAY)
    assert road.effects == [f"{age} {n}" for age in ("old", "new") for n in range(3)]
    passes(one)
    assert road.ids() == 3


def test_once_prunes_at_its_end(road: Road):
    remember(road, 30 * DAY)
    road.write("new")
    handled(road)
    handled(road)
    assert road.ids() == 1
    assert road.effects == ["new"]


def test_a_running_inbox_prunes_beside_its_work(road: Road):
    remember(road, 30 * DAY)
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    with running(inbox.run, road.database, road.log, retain=timedelta(seconds=2)):
        road.write("new")
        wait_until(lambda: road.effects == ["new"], "the message is handled")
        wait_until(lambda: road.ids() == 1, "the old id is forgotten")


def test_a_table_of_many_slices_is_walked_whole(road: Road, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("inbox.retention.postgresql.SLICE_BLOCKS", 2)
    monkeypatch.setattr("inbox.retention.sqlite.SLICE_ROWS", 100)
    plain = road.database.startswith("sqlite")
    numbers = (
        "with recursive n(n) as (select 1 union all select n + 1 from n where n < 3000)"
        " insert into inbox (consumer_group, source, message_id, received_at)"
        " select 'billing', '/shop', lower(hex(randomblob(16))), datetime('now', '-' || (3000 - n) || ' hours') from n"
        if plain
        else "insert into inbox select 'billing', '/shop', gen_random_uuid(), now() - make_interval(hours => 3000 - n)"
        " from generate_series(1, 3000) as n"
    )
    rows(road.database, numbers)
    one = chores_of(road)
    passes(one)
    assert road.ids() in (192, 193)


def test_the_order_of_slices_is_the_end_and_then_all_of_them():
    random.seed(3)
    order = chores._order(range(0, 640, 64))
    assert order[-1] == 576
    assert sorted(set(order)) == list(range(0, 640, 64))
    assert chores._order(range(0, 0, 64)) == []


def test_a_log_that_keeps_records_longer_is_warned_of(database_url: str, caplog: pytest.LogCaptureFixture):
    words = too_short(KEPT, {"a": 7 * DAY, "b": 8 * DAY, "c": None, "d": 30 * DAY})
    assert sorted(words) == ["b", "c", "d"]
    assert "the log keeps topic 'd' for 30d, and ids are kept for 8d only" in words["d"]
    road = Road(database_url)
    rows(road.database, "insert into log_topic (name, incarnation, partitions, retain_seconds) values (?, ?, 1, ?)",
         TOPIC, uuid.uuid4().hex, 2_592_000)  # fmt: skip
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    with caplog.at_level(logging.WARNING, "inbox"):
        inbox.run(road.database, road.database, once=True)
    assert "the log keeps topic 'orders' for 30d" in caplog.text


def test_one_member_of_a_group_prunes_at_a_time(postgresql_url: str):
    road = Road(postgresql_url)
    remember(road, 30 * DAY, timedelta(0))
    one = chores_of(road)
    with opened(parse_url(postgresql_url), Place(None, ""), "billing") as other:
        assert other.alone()
        passes(one)
        assert road.ids() == 2
    passes(one)
    assert road.ids() == 1


def test_a_new_group_is_known_before_it_looks_where_a_topic_begins(database_url: str, monkeypatch: pytest.MonkeyPatch):
    """INVARIANT I7: pruned between the look and the first report, its records would be gone from under it."""
    road = Road(database_url)
    for number in range(3):
        write(road.database, f"{number}", age=30 * DAY, key="k")
    drain(road.database)
    log = open_log(road.database, LogOptions())
    log.enrol("quick", [TOPIC])
    rows(road.database, 'update log_group_offset set "offset" = 3')
    look = BuiltinLog.partitions

    def then_pruned(self: BuiltinLog, topics: Sequence[str]) -> Mapping[Partition, Bounds]:
        found = look(self, topics)
        prune_log(road.database)
        return found

    monkeypatch.setattr(BuiltinLog, "partitions", then_pruned)
    inbox = Inbox("billing")
    on(inbox, "def", plain_effect)
    inbox.run(road.database, road.database, once=True)
    assert road.effects == ["0", "1", "2"]


def plain_effect(delivery: Delivery, session: Session) -> None:
    session.execute(text(INSERT), {"body": delivery.message.payload.decode(), "attempt": delivery.attempt})


def test_the_walk_reads_only_the_blocks_of_its_slice(postgresql_url: str):
    """A slice that is found by the key, or by a scan of all, would cost the whole table each time."""
    from inbox.retention.postgresql import _PRUNE  # noqa: PLC0415

    road = Road(postgresql_url)
    rows(
        road.database,
        "insert into inbox select 'billing', '/shop', gen_random_uuid(), now() from generate_series(1, 50000)",
    )
    values = {"first": "(64,0)", "end": "(128,0)", "consumer_group": "billing", "before": "-infinity", "upto": "now"}
    for analyzed in (False, True):
        if analyzed:
            rows(road.database, "analyze inbox")
        with psycopg.connect(postgresql_url, cursor_factory=psycopg.ClientCursor) as connection:
            plan = "\n".join(row[0] for row in connection.execute("explain " + _PRUNE.format(inbox="inbox"), values))
        assert plan.count("Tid Range Scan on inbox") == 2, plan
