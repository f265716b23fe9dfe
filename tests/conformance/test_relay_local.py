"""The relay with the built-in log in the outbox's own database, on both dialects."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from databases import by_key, connected, install, payloads, rows, wait_until, write

from outbox.errors import ConfigurationError, MessageAtFault, Permanent
from relay import Relay
from relay.logs.contract import LogOptions
from relay.logs.partition import partition_of
from relay.logs.registry import open_log
from relay.registration import forget
from relay.status import status


@pytest.fixture
def url(database_url: str) -> str:
    return install(database_url)


def drain(url: str, **settings: object) -> None:
    Relay(url, url, **settings).run(once=True)


class Running(NamedTuple):
    """A relay in a thread."""

    stop: threading.Event
    thread: threading.Thread


@contextmanager
def running(url: str, **settings: object) -> Iterator[Running]:
    """A relay in a thread, told to stop at the end; its error is the test's."""
    errors: list[BaseException] = []
    stop = threading.Event()

    def run() -> None:
        try:
            Relay(url, url, **settings).run(stop=stop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield Running(stop, thread)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_an_empty_outbox_is_drained_at_once(url: str):
    drain(url)
    assert payloads(url) == []
    assert [(s.relay, s.lag_messages, s.lag_seconds) for s in status(url)] == [("default", 0, 0)]


def test_every_message_is_in_the_log_once_and_in_order_per_key(url: str):
    for number in range(40):
        write(url, "orders", str(number), key=str(number % 4))
    drain(url)
    drain(url)
    assert by_key(url) == {str(key): [str(n) for n in range(key, 40, 4)] for key in range(4)}


def test_a_rolled_back_message_never_reaches_the_log(url: str):
    with connected(url) as connection:
        connection.execute("begin")
        connection.execute("insert into outbox (topic, payload) values ('orders', 'ghost')")
        connection.execute("rollback")
    write(url, "orders", "real")
    drain(url)
    assert payloads(url) == ["real"]


def test_offsets_are_dense_and_partitions_are_those_of_the_key(url: str):
    for number in range(60):
        write(url, "orders", str(number), key=f"kä{number}")
    drain(url)
    found = rows(url, 'select r.key, r.partition, r."offset", r.id from log_record r order by r.partition, r."offset"')
    expected: dict[int, int] = {}
    for key, partition, offset, identity in found:
        assert partition == partition_of(key, identity, 8)
        assert offset == expected.get(partition, 0)
        expected[partition] = offset + 1
    assert len(found) == 60


def test_messages_without_a_key_are_spread_by_their_id(url: str):
    for number in range(50):
        write(url, "orders", str(number))
    drain(url)
    assert len({row[0] for row in rows(url, "select distinct partition from log_record")}) > 1


def test_topics_are_made_with_the_partitions_that_the_url_names_and_keep_them(url: str):
    write(url, "orders", "1")
    log = f"{url}?partitions=3"
    Relay(url, log).run(once=True)
    write(url, "orders", "2")
    Relay(url, url).run(once=True)
    assert rows(url, "select name, partitions, retain_seconds from log_topic") == [("orders", 3, 604800)]


def test_type_and_source_of_a_plain_row_are_filled_in(url: str):
    write(url, "orders", "1")
    drain(url)
    (identity,) = rows(url, "select id from outbox_installation")[0]
    ((kind, source),) = rows(url, "select type, source from log_record")
    assert kind == "orders"
    assert source.removeprefix("/outbox/").replace("-", "") == str(identity).replace("-", "")


def test_a_relay_moves_only_its_topics_and_the_rest_is_shown_as_unclaimed(url: str):
    for topic in ("orders", "orders.eu", "bills", "Orders"):
        write(url, topic, topic)
    drain(url, topics="orders*")
    assert sorted(payloads(url)) == ["orders", "orders.eu"]
    (shown,) = status(url)
    assert (shown.lag_messages, shown.unclaimed) == (0, 2)
    assert rows(url, "select count(*) from outbox") == [(4,)]


def test_several_relays_of_different_names_move_different_topics_of_one_outbox(url: str):
    for number in range(30):
        write(url, "ab"[number % 2], str(number), key="k")
    with running(url, name="one", topics="a"), running(url, name="two", topics="b"):
        wait_until(lambda: len(payloads(url)) == 30, "both relays are through")
    assert payloads(url, "a") == [str(n) for n in range(0, 30, 2)]
    assert payloads(url, "b") == [str(n) for n in range(1, 30, 2)]


def test_latest_leaves_what_lay_in_the_outbox_when_it_was_registered(url: str):
    write(url, "orders", "old")
    drain(url, start="latest")
    write(url, "orders", "new")
    drain(url)
    assert payloads(url) == ["new"]


def test_a_standby_takes_over_when_the_holder_stops(url: str):
    with running(url) as first:
        wait_until(lambda: any(s.owner for s in status(url)), "the first holds the lease")
        with running(url):
            write(url, "orders", "1")
            wait_until(lambda: payloads(url) == ["1"], "moved by the first")
            first.stop.set()
            wait_until(lambda: status(url)[0].epoch == 2, "the second holds the lease")
            write(url, "orders", "2")
            wait_until(lambda: sorted(payloads(url)) == ["1", "2"], "moved by the second")
    assert status(url)[0].owner is None


def test_once_gives_up_when_somebody_else_keeps_the_lease_and_names_the_holder(url: str):
    with running(url, lease=1.0):
        wait_until(lambda: any(s.owner for s in status(url)), "the first holds the lease")
        holder = status(url)[0].owner
        assert holder is not None
        with pytest.raises(Permanent, match=holder):
            drain(url, lease=1.0)


def test_another_pattern_for_the_same_name_is_refused_and_says_what_to_do(url: str):
    drain(url, topics="orders")
    with pytest.raises(ConfigurationError, match=r"registered for topics 'orders', not 'bills'.*relay forget default"):
        drain(url, topics="bills")


def test_forget_refuses_while_the_relay_is_alive_and_a_new_one_begins_anew(url: str):
    write(url, "orders", "1")
    with running(url):
        wait_until(lambda: payloads(url) == ["1"], "moved")
        with pytest.raises(Permanent, match="alive"):
            forget(url, "default")
    forget(url, "default")
    assert status(url) == []
    drain(url)
    assert payloads(url) == ["1", "1"]
    with pytest.raises(ConfigurationError, match="no relay is registered as 'other'"):
        forget(url, "other")


def test_a_forgotten_relay_that_runs_on_ends_with_words(url: str):
    with pytest.raises(Permanent, match="forgotten"), running(url, lease=1.0) as relay:
        wait_until(lambda: any(s.owner for s in status(url)), "it holds the lease")
        rows(url, "delete from relay_checkpoint")
        rows(url, "delete from relay")
        wait_until(lambda: not relay.thread.is_alive(), "the relay ends")


def test_a_message_at_fault_stops_the_relay_behind_everything_before_it_and_is_named(url: str):
    write(url, "orders", "before", key="k")
    rows(url, "insert into outbox (topic, payload, headers) values (?, ?, ?)", "orders", b"bad", "[1]")
    write(url, "orders", "after", key="k")
    ((identity, position),) = rows(url, "select id, position from outbox where headers is not null")
    with pytest.raises(MessageAtFault) as stopped:
        drain(url)
    assert f"position {position}" in str(stopped.value)
    assert str(identity).replace("-", "") in str(stopped.value).replace("-", "")
    assert "'orders'" in str(stopped.value)
    assert payloads(url) == ["before"]
    rows(url, "delete from outbox where position = ?", position)
    drain(url)
    assert by_key(url)["k"] == ["before", "after"]


def test_exactly_once_is_refused_for_a_log_that_cannot(url: str):
    with pytest.raises(ConfigurationError, match="exactly-once"):
        Relay(url, "memory://refused", delivery="exactly-once").run(once=True)


@pytest.mark.parametrize("delivery", ["at-least-once", "at-most-once"])
def test_a_log_elsewhere_gets_every_message_in_order(url: str, delivery: str):
    name = f"memory://{delivery}-{abs(hash(url))}"
    for number in range(20):
        write(url, "orders", str(number), key="k")
    Relay(url, name, delivery=delivery).run(once=True)
    Relay(url, name, delivery=delivery).run(once=True)
    records = open_log(name, LogOptions()).tail("orders", from_start=True, follow=False)
    assert [record.message.payload for record in records if record] == [str(n).encode() for n in range(20)]


def test_a_message_at_fault_stops_a_relay_to_a_log_elsewhere_too(url: str):
    name = f"memory://fault-{abs(hash(url))}"
    write(url, "orders", "before", key="k")
    rows(url, "insert into outbox (topic, payload, headers) values (?, ?, ?)", "orders", b"bad", "[1]")
    write(url, "orders", "after", key="k")
    for _ in range(2):
        with pytest.raises(MessageAtFault, match="'orders'"):
            Relay(url, name).run(once=True)
    rows(url, "delete from outbox where headers is not null")
    Relay(url, name).run(once=True)
    records = open_log(name, LogOptions()).tail("orders", from_start=True, follow=False)
    assert [record.message.payload for record in records if record] == [b"before", b"after"]


def test_a_pruned_outbox_never_uses_a_position_again(url: str):
    """On SQLite without AUTOINCREMENT the positions begin at 1 again, and what is written then counts as read: lost."""
    write(url, "orders", "1")
    drain(url)
    rows(url, "delete from outbox")
    write(url, "orders", "2")
    drain(url)
    assert payloads(url) == ["1", "2"] or sorted(payloads(url)) == ["1", "2"]


def test_old_steps_are_pruned_while_it_runs(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("relay.relay.PRUNE_STEPS", 20)
    for dialect in ("postgresql", "sqlite"):
        monkeypatch.setattr(f"outbox.journal.{dialect}.KEEP_STEPS", 10)
    with running(url):
        for number in range(60):
            write(url, "orders", str(number), key="k")
            wait_until(lambda n=number: len(payloads(url)) > n, "moved")
    assert payloads(url) == [str(n) for n in range(60)]
    oldest, newest = rows(url, "select min(step), max(step) from relay_checkpoint")[0]
    assert newest >= 60
    assert oldest >= 20
