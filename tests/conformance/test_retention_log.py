"""Which records are deleted from the built-in log, and which must not be: one test a rule, on both dialects."""

import logging
import threading
from datetime import timedelta

import psycopg
import pytest
from databases import install, payloads, rows, wait_until
from retention_road import DAY, drain, prune_log, unhurried, write

from relay.logs.builtin import retention
from relay.logs.contract import LogOptions
from relay.logs.registry import open_log

WEEKS = 30 * DAY


@pytest.fixture
def url(database_url: str) -> str:
    return install(database_url)


@pytest.fixture
def server_url(postgresql_url: str) -> str:
    return install(postgresql_url)


def put(url: str, *ages: timedelta, topic: str = "orders", partitions: int = 1) -> None:
    """Bring one message of each age into the log, in this order."""
    for number, age in enumerate(ages):
        write(url, f"{topic} {number}", topic=topic, age=age, key="k")
    from relay import Relay  # noqa: PLC0415

    Relay(url, f"{url}?partitions={partitions}", retain=36_500 * DAY).run(once=True)


def reads(url: str, group: str, topic: str, upto: int, *, partition: int = 0) -> None:
    """Report that a group reads `upto` next, as its consumer does."""
    open_log(url, LogOptions()).enrol(group, [topic])
    rows(
        url,
        'insert into log_group_offset (consumer_group, topic_id, partition, "offset")'
        " select ?, topic_id, ?, ? from log_topic where name = ?"
        ' on conflict (consumer_group, topic_id, partition) do update set "offset" = excluded."offset"',
        group,
        partition,
        upto,
        topic,
    )


def test_old_records_that_every_group_has_read_go_and_the_newest_stays(url: str):
    put(url, WEEKS, WEEKS, WEEKS)
    reads(url, "billing", "orders", 3)
    assert prune_log(url) == 2
    assert payloads(url) == ["orders 2"]
    assert prune_log(url) == 0


def test_offsets_go_on_behind_the_newest(url: str):
    """INVARIANT I5: with the newest record gone, offsets would begin again, and readers would pass new records by."""
    put(url, WEEKS, WEEKS)
    reads(url, "billing", "orders", 2)
    prune_log(url)
    put(url, timedelta(0))
    assert rows(url, 'select max("offset") from log_record') == [(2,)]


def test_nothing_goes_in_a_topic_that_no_group_has_read(url: str):
    """INVARIANT I7: "every group has read it" is true of no groups; the first one begins with the first record."""
    put(url, WEEKS, WEEKS)
    put(url, WEEKS, WEEKS, topic="audit")
    reads(url, "billing", "orders", 2)
    assert prune_log(url) == 1
    assert payloads(url, "audit") == ["audit 0", "audit 1"]


def test_the_slowest_group_decides(url: str):
    put(url, *[WEEKS] * 6)
    reads(url, "quick", "orders", 6)
    reads(url, "slow", "orders", 2)
    assert prune_log(url) == 2
    assert payloads(url) == [f"orders {n}" for n in range(2, 6)]


def test_a_group_that_has_reported_other_partitions_only_has_read_nothing_of_this_one(url: str):
    """INVARIANT I7: a group is known by its topic; a partition that it has not come to yet is all unread."""
    for number in range(40):
        write(url, f"{number}", key=f"key {number}", age=WEEKS)
    drain(url)
    held = {row[0]: row[1] for row in rows(url, "select partition, count(*) from log_record group by 1")}
    assert len(held) > 1
    first = min(held)
    for partition, records in held.items():
        reads(url, "quick", "orders", records, partition=partition)
    reads(url, "billing", "orders", held[first], partition=first)
    rows(url, "delete from log_group_offset where consumer_group = 'billing' and partition <> ?", first)
    assert prune_log(url) == held[first] - 1


def test_a_group_whose_member_stated_the_topic_before_it_was_made_is_known(url: str):
    """INVARIANT I7: it has not seen the topic yet, and is to read it from its first record."""
    put(url, WEEKS, WEEKS)
    reads(url, "quick", "orders", 2)
    rows(
        url,
        "insert into log_member (consumer_group, member, topics) values ('slow', 'a member', ?)",
        '["payments", "orders"]',
    )
    assert prune_log(url) == 0
    assert [one.group for one in open_log(url, LogOptions()).unread()] == ["slow"]
    rows(url, "delete from log_member")
    assert prune_log(url) == 1


def test_only_a_prefix_goes_whatever_is_old_behind_it(url: str):
    """INVARIANT I5: offsets stay dense, so that a reader that finds a gap knows that records were lost."""
    put(url, WEEKS, timedelta(hours=1), WEEKS, WEEKS)
    reads(url, "billing", "orders", 4)
    assert prune_log(url) == 1
    assert payloads(url) == ["orders 1", "orders 2", "orders 3"]


def test_the_topics_own_retention_decides(url: str):
    put(url, 2 * DAY, 2 * DAY, 2 * DAY)
    reads(url, "billing", "orders", 3)
    assert prune_log(url) == 0, "a topic keeps records for 7 days"
    rows(url, "update log_topic set retain_seconds = 86400")
    assert prune_log(url) == 2


def test_a_topic_without_a_retention_keeps_its_records_for_ever(url: str):
    put(url, WEEKS, WEEKS)
    reads(url, "billing", "orders", 2)
    rows(url, "update log_topic set retain_seconds = null")
    assert prune_log(url) == 0
    assert open_log(url, LogOptions()).unread() == []
    assert open_log(url, LogOptions()).retentions(["orders", "nowhere"]) == {"orders": None}


def test_many_batches_and_partitions(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention, "BATCH_RECORDS", 7)
    for number in range(120):
        write(url, f"{number}", key=f"key {number % 30}", age=WEEKS)
    drain(url)
    held = {row[0]: row[1] for row in rows(url, "select partition, count(*) from log_record group by 1")}
    for partition, records in held.items():
        reads(url, "billing", "orders", records, partition=partition)
    assert prune_log(url) == 120 - len(held)
    assert prune_log(url) == 0


def test_what_is_kept_is_told_with_the_reason(url: str):
    put(url, WEEKS, WEEKS, WEEKS)
    log = open_log(url, LogOptions())
    (unread,) = log.unread()
    assert (unread.topic, unread.records, unread.group, unread.retain) == ("orders", 3, None, 7 * DAY)
    assert "no group has ever read its 3 records" in unread.words()
    reads(url, "slow", "orders", 1)
    (unread,) = log.unread()
    assert (unread.records, unread.group) == (2, "slow")
    assert "group 'slow' has 2 yet to read" in unread.words()
    reads(url, "slow", "orders", 3)
    assert log.unread() == []


def test_a_running_relay_says_what_the_log_keeps_unread(url: str, caplog: pytest.LogCaptureFixture):
    put(url, WEEKS, WEEKS)
    with caplog.at_level(logging.WARNING, "relay"):
        drain(url)
    assert "topic 'orders' keeps records from before its retention of 7d: no group has ever read" in caplog.text


def test_a_group_that_is_enrolled_keeps_what_it_has_not_read(url: str):
    """INVARIANT I7: between looking where a topic begins and its first report, a new group's records must stay."""
    put(url, WEEKS, WEEKS, WEEKS)
    reads(url, "old", "orders", 3)
    log = open_log(url, LogOptions())
    assert log.enrol("new", ["orders", "nowhere"]) == ["orders"]
    ((_, bounds),) = log.partitions(["orders"]).items()
    assert prune_log(url) == 0
    assert log.partitions(["orders"]).popitem()[1] == bounds


def test_enrolling_again_takes_nothing_back(url: str):
    """INVARIANT I5: a committed offset never goes back."""
    put(url, WEEKS, WEEKS)
    reads(url, "billing", "orders", 2)
    open_log(url, LogOptions()).enrol("billing", ["orders"])
    assert list(open_log(url, LogOptions()).committed("billing").values()) == [2]


def test_a_group_that_makes_itself_known_is_not_overtaken(server_url: str):
    """INVARIANT I7: a batch that cannot see the group yet deletes nothing, and the group's rows wait for a batch."""
    put(server_url, WEEKS, WEEKS, WEEKS)
    reads(server_url, "old", "orders", 3)
    log = open_log(server_url, LogOptions())
    key = "hashtextextended('retention ' || (select id from log_identity), 0)"
    with psycopg.connect(server_url) as joining:
        joining.execute(f"select pg_advisory_xact_lock_shared({key})")
        assert prune_log(server_url) == 0
        assert len(payloads(server_url)) == 3
        joining.rollback()
        joining.execute(f"select pg_advisory_xact_lock({key})")
        thread = threading.Thread(target=log.enrol, args=("new", ["orders"]))
        thread.start()
        wait_until(
            lambda: rows(server_url, "select count(*) from pg_locks where not granted")[0][0] > 0,
            "the group waits for the batch",
        )
        assert rows(server_url, "select count(*) from log_group_offset where consumer_group = 'new'") == [(0,)]
        joining.rollback()
        thread.join(30)
    assert prune_log(server_url) == 0


def test_appends_and_pruning_do_not_wait_for_each_other(server_url: str):
    put(server_url, WEEKS, WEEKS, WEEKS)
    reads(server_url, "billing", "orders", 3)
    with psycopg.connect(server_url) as appending:
        appending.execute("select single from log_identity where single = 1 for update")
        assert prune_log(server_url) == 2


def test_a_pass_ends_when_it_is_told_to(url: str):
    put(url, WEEKS, WEEKS, WEEKS)
    reads(url, "billing", "orders", 3)
    pace = unhurried()
    pace._over.set()
    assert open_log(url, LogOptions()).prune(pace) == 0
    assert len(payloads(url)) == 3
