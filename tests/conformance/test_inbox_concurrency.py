"""`--concurrency N`: handlers side by side, order by key, and a prefix that is claimed when all below it is done."""

import asyncio
import threading
from collections import defaultdict
from datetime import timedelta

import pytest
from databases import rows, wait_until
from inbox_road import INSERT, TOPIC, Road, effect, message, on, running
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox, Reject, Retry
from outbox.errors import ConfigurationError, Permanent
from outbox.retry import RetryPolicy
from relay.logs.partition import partition_of

GROUP = "billing"
AT_ONCE = RetryPolicy(first_seconds=0)


@pytest.fixture
def road(postgresql_url: str) -> Road:
    return Road(postgresql_url)


@pytest.fixture(params=["def", "async def"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def keys_of(partition: int, count: int) -> list[str]:
    """Keys whose messages go to this of four partitions."""
    found = (key for key in map(str, range(10_000)) if partition_of(key, message("").id, 4) == partition)
    return [next(found) for _ in range(count)]


KEYS = keys_of(0, 8)


def claims(road: Road) -> list[tuple[int, int]]:
    """The claims of the one partition that was handled, by step."""
    found = rows(
        road.database,
        "select begin_offset, end_offset from inbox_offset where partition = 0 and step > 0 order by step",
    )
    return [tuple(row) for row in found]


def prefix(road: Road) -> int:
    return max((end for _, end in claims(road)), default=0)


def by_key(road: Road) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for one in road.effects:
        key, _, number = one.partition(":")
        found[key].append(number)
    return found


def keyed(delivery: Delivery[str], session: Session) -> None:
    session.execute(text(INSERT), {"body": f"{delivery.message.key}:{delivery.data}", "attempt": delivery.attempt})


# Side by side, and in order


def test_as_many_handlers_run_at_once_as_concurrency_says(road: Road) -> None:
    """They meet at a barrier: were it one less, the barrier would break."""
    inbox = Inbox(GROUP)
    meet = threading.Barrier(4, timeout=20)

    def meets(delivery: Delivery[str], session: Session) -> None:
        meet.wait()
        effect(delivery, session)

    on(inbox, "def", meets)
    road.put(*(message(key, key=key) for key in KEYS))
    inbox.run(road.database, road.log, once=True, concurrency=4)
    assert sorted(road.effects) == sorted(KEYS)
    assert road.counts() == (8, 0, 0)


def test_as_many_async_handlers_run_at_once_as_concurrency_says(road: Road) -> None:
    inbox = Inbox(GROUP)
    meet = asyncio.Barrier(4)

    @inbox.handler(TOPIC, timeout_seconds=20, retry=RetryPolicy(attempts=1))
    async def meets(delivery: Delivery[str], connection: AsyncConnection) -> None:
        await meet.wait()
        await connection.execute(text(INSERT), {"body": delivery.data, "attempt": delivery.attempt})

    road.put(*(message(key, key=key) for key in KEYS))
    inbox.run(road.database, road.log, once=True, concurrency=4)
    assert sorted(road.effects) == sorted(KEYS)
    assert road.counts() == (8, 0, 0)


def test_no_more_run_at_once_than_concurrency_says_and_messages_of_a_key_one_after_another(
    road: Road, kind: str
) -> None:
    inbox = Inbox(GROUP)
    inside: dict[str, int] = defaultdict(int)
    most, lock = [0], threading.Lock()

    def counts(delivery: Delivery[str], session: Session) -> None:
        with lock:
            inside[str(delivery.message.key)] += 1
            assert inside[str(delivery.message.key)] == 1
            most[0] = max(most[0], sum(inside.values()))
        session.execute(text("select pg_sleep(0.002)"))
        keyed(delivery, session)
        with lock:
            inside[str(delivery.message.key)] -= 1

    on(inbox, kind, counts, retry=RetryPolicy(attempts=1))
    # Neighbours have one key: begun in the order of the log, they would be side by side.
    road.put(*(message(f"{number}", key=KEYS[number // 4 % 5]) for number in range(100)))
    inbox.run(road.database, road.log, once=True, concurrency=3)
    assert most[0] == 3 or kind == "async def"
    assert by_key(road) == {
        key: [str(number) for number in range(100) if number // 4 % 5 == place] for place, key in enumerate(KEYS[:5])
    }
    assert prefix(road) == 100


def test_messages_without_a_key_are_spread(postgresql_url: str) -> None:
    road = Road(postgresql_url, partitions=1)
    inbox = Inbox(GROUP)
    meet = threading.Barrier(3, timeout=20)

    def meets(delivery: Delivery[str], session: Session) -> None:
        meet.wait()
        effect(delivery, session)

    on(inbox, "def", meets)
    road.write(*"abcdef", key=None)
    inbox.run(road.database, road.log, once=True, concurrency=3)
    assert sorted(road.effects) == list("abcdef")


def test_one_slow_message_keeps_no_other_key_waiting(road: Road, kind: str) -> None:
    inbox = Inbox(GROUP)
    others_done = threading.Event()

    def slow(delivery: Delivery[str], session: Session) -> None:
        if delivery.data == "slow" and not others_done.is_set():
            raise Retry("the others first", after=timedelta(seconds=0.01))
        effect(delivery, session)

    on(inbox, kind, slow, retry=RetryPolicy(attempts=100_000))
    slow_key, *others = KEYS
    road.put(message("slow", key=slow_key), message("after slow", key=slow_key))
    road.put(*(message(key, key=key) for key in others))
    with running(inbox.run, road.database, road.log, concurrency=2):
        wait_until(lambda: sorted(road.effects) == sorted(others), "the others flow")
        wait_until(lambda: road.counts()[0] == len(others), "they are counted, though the prefix stands")
        assert prefix(road) == 0
        others_done.set()
        wait_until(lambda: len(road.effects) == 9, "the retry is handled")
    assert road.effects[-2:] == ["slow", "after slow"]
    assert prefix(road) == 9
    assert road.counts() == (9, 0, 0)


def test_types_without_a_handler_are_ignored_and_repeats_are_duplicates(road: Road, kind: str) -> None:
    inbox = Inbox(GROUP)
    on(inbox, kind, effect, type="Placed")
    first = message("one")
    road.put(first, message("other", type="Cancelled"), first, message("two"), message("other", type="Cancelled"))
    inbox.run(road.database, road.log, once=True, concurrency=2)
    assert road.effects == ["one", "two"]
    assert road.counts() == (2, 1, 2)
    assert sum(road.open_log().committed(GROUP).values()) == 5


# Going on where it stood


@pytest.mark.parametrize("concurrencies", [(4, 1, 4), (1, 4, 1)])
def test_a_group_goes_on_where_it_stood_whatever_its_concurrency_was(
    road: Road, kind: str, concurrencies: tuple[int, ...]
) -> None:
    inbox = Inbox(GROUP)
    on(inbox, kind, effect)
    for turn, concurrency in enumerate(concurrencies):
        road.put(*(message(f"{turn}-{key}", key=key) for key in KEYS))
        inbox.run(road.database, road.log, once=True, concurrency=concurrency)
    assert sorted(road.effects) == sorted(f"{turn}-{key}" for turn in range(3) for key in KEYS)
    assert road.counts() == (24, 0, 0)


def test_start_latest_counts_with_concurrency_too(road: Road) -> None:
    inbox = Inbox(GROUP)
    on(inbox, "def", effect)
    road.write("before")
    inbox.run(road.database, road.log, once=True, start="latest", concurrency=2)
    road.write("after")
    inbox.run(road.database, road.log, once=True, start="latest", concurrency=2)
    assert road.effects == ["after"]


def test_what_was_done_behind_one_that_was_not_comes_again_and_is_passed_by(road: Road, kind: str) -> None:
    """INVARIANT I4: a crash leaves the claim at the prefix. What lies behind it is known by its ids."""
    inbox = Inbox(GROUP)
    mended = threading.Event()

    def first_is_stuck(delivery: Delivery[str], session: Session) -> None:
        if delivery.data == "0" and not mended.is_set():
            raise Retry("not yet", after=timedelta(seconds=0.01))
        keyed(delivery, session)

    on(inbox, kind, first_is_stuck, retry=RetryPolicy(attempts=100_000))
    road.put(*(message(str(number), key=KEYS[number % 4]) for number in range(12)))
    with running(inbox.run, road.database, road.log, concurrency=3):
        wait_until(lambda: len(road.effects) == 9, "all but the first key are handled")
    assert prefix(road) == 0
    mended.set()
    inbox.run(road.database, road.log, once=True, concurrency=3)
    assert by_key(road) == {key: [str(number) for number in range(place, 12, 4)] for place, key in enumerate(KEYS[:4])}
    assert prefix(road) == 12
    assert road.counts() == (12, 9, 0)


def test_what_is_in_hand_is_finished_when_the_process_is_told_to_stop(road: Road, kind: str) -> None:
    inbox = Inbox(GROUP)
    begun, goes_on = threading.Semaphore(0), threading.Event()

    def waits(delivery: Delivery[str], session: Session) -> None:
        begun.release()
        assert goes_on.wait(20) if kind == "def" else True
        effect(delivery, session)

    on(inbox, kind, waits)
    road.put(*(message(key, key=key) for key in KEYS))
    with running(inbox.run, road.database, road.log, concurrency=2) as stop:
        begun.acquire()
        begun.acquire()
        stop.set()
        goes_on.set()
    assert road.ids() == len(road.effects) == road.counts()[0] >= 2
    assert prefix(road) == len(road.effects)
    inbox.run(road.database, road.log, once=True, concurrency=2)
    assert sorted(road.effects) == sorted(KEYS)
    assert road.counts() == (8, 0, 0)


def test_an_async_run_that_is_cancelled_finishes_what_is_in_hand(road: Road) -> None:
    inbox = Inbox(GROUP)
    begun: list[str] = []
    three = asyncio.Event()

    @inbox.handler(TOPIC)
    async def handle(delivery: Delivery[str], connection: AsyncConnection) -> None:
        begun.append(delivery.data)
        if len(begun) == 3:
            three.set()
        await asyncio.sleep(0.05)
        await connection.execute(text(INSERT), {"body": delivery.data, "attempt": 1})

    async def cancelled() -> None:
        task = asyncio.create_task(inbox.run_async(road.database, road.log, concurrency=3))
        await asyncio.wait_for(three.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    road.put(*(message(key, key=key) for key in KEYS))
    asyncio.run(cancelled())
    assert sorted(road.effects) == sorted(begun)
    assert prefix(road) == len(begun) < 8


# Failures


def test_a_rejected_message_stops_its_partition_when_what_lies_before_it_is_done(
    road: Road, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(GROUP)
    rejected = threading.Event()
    calls: list[str] = []

    def handle(delivery: Delivery[str], session: Session) -> None:
        calls.append(delivery.data)
        if delivery.data == "bad":
            rejected.set()
            raise Reject("no lines")
        if delivery.data == "before" and not rejected.is_set():
            raise Retry("the bad one first", after=timedelta(seconds=0.01))
        effect(delivery, session)

    on(inbox, kind, handle, retry=RetryPolicy(attempts=100_000))
    before, bad, after = KEYS[:3]
    road.put(message("before", key=before), message("second before", key=before))
    sent = message("bad", key=bad)
    road.put(sent, *(message("after", key=bad) for _ in range(3)), *(message("after", key=after) for _ in range(50)))
    road.put(*(message(f"other {number}", key=keys_of(1, 1)[0]) for number in range(3)))
    with pytest.raises(Permanent) as raised:
        inbox.run(road.database, road.log, once=True, concurrency=3)
    for words in (str(sent.id), "topic orders", "partition 0", "offset 2", "was rejected (Reject: no lines)"):
        assert words in str(raised.value)
    assert {"before", "second before", "other 0", "other 1", "other 2"} <= set(road.effects)
    assert road.effects.count("after") < 50
    assert prefix(road) == 2
    assert calls.count("bad") == 1


def test_a_message_out_of_attempts_stops_its_partition_and_a_restart_goes_on(road: Road, kind: str) -> None:
    inbox = Inbox(GROUP)
    attempts: list[int] = []
    mended = threading.Event()

    def handle(delivery: Delivery[str], session: Session) -> None:
        keyed(delivery, session)
        if delivery.data == "3":
            attempts.append(delivery.attempt)
            if not mended.is_set():
                raise RuntimeError("not mended")

    on(inbox, kind, handle, retry=RetryPolicy(attempts=3, first_seconds=0))
    road.put(*(message(str(number), key=KEYS[number % 3]) for number in range(9)))
    with pytest.raises(Permanent, match="failed 3 times, lastly with RuntimeError: not mended"):
        inbox.run(road.database, road.log, once=True, concurrency=3)
    assert attempts == [1, 2, 3]
    assert prefix(road) == 3
    mended.set()
    inbox.run(road.database, road.log, once=True, concurrency=3)
    assert attempts == [1, 2, 3, 1]
    assert by_key(road) == {key: [str(number) for number in range(place, 9, 3)] for place, key in enumerate(KEYS[:3])}


def test_a_message_that_fails_is_redelivered_and_costs_no_other(road: Road, kind: str) -> None:
    inbox = Inbox(GROUP)
    calls: list[tuple[str, int, bool]] = []

    def handle(delivery: Delivery[str], session: Session) -> None:
        calls.append((delivery.data, delivery.attempt, delivery.redelivered))
        effect(delivery, session)
        if delivery.data == "two" and delivery.attempt == 1:
            raise RuntimeError("once")

    on(inbox, kind, handle, retry=AT_ONCE)
    road.write("one", "two", "three")
    inbox.run(road.database, road.log, once=True, concurrency=2)
    assert calls == [("one", 1, False), ("two", 1, False), ("two", 2, True), ("three", 1, False)]
    assert road.effects == ["one", "two", "three"]


def test_an_async_handler_that_takes_too_long_is_cancelled_and_the_others_are_not(road: Road) -> None:
    inbox = Inbox(GROUP)
    cancelled: list[str] = []

    @inbox.handler(TOPIC, timeout_seconds=1, retry=AT_ONCE)
    async def handle(delivery: Delivery[str], connection: AsyncConnection) -> None:
        await connection.execute(text(INSERT), {"body": delivery.data, "attempt": delivery.attempt})
        if delivery.data == KEYS[0] and delivery.attempt == 1:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.append(delivery.data)
                raise

    road.put(*(message(key, key=key) for key in KEYS))
    inbox.run(road.database, road.log, once=True, concurrency=4)
    assert cancelled == [KEYS[0]]
    assert sorted(road.effects) == sorted(KEYS)


def test_a_def_handler_that_took_too_long_is_rolled_back_and_the_others_are_not(road: Road) -> None:
    inbox = Inbox(GROUP)
    attempts: list[int] = []

    @inbox.handler(TOPIC, timeout_seconds=1, retry=AT_ONCE)
    def handle(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        if delivery.data == KEYS[0]:
            attempts.append(delivery.attempt)
            if delivery.attempt == 1:
                threading.Event().wait(1.1)

    road.put(*(message(key, key=key) for key in KEYS))
    inbox.run(road.database, road.log, once=True, concurrency=4)
    assert attempts == [1, 2]
    assert sorted(road.effects) == sorted(KEYS)


def test_a_lost_connection_is_nobodys_attempt_and_costs_no_other_message(road: Road, kind: str) -> None:
    inbox = Inbox(GROUP)
    attempts: list[int] = []

    def handle(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        if delivery.data == "lost":
            attempts.append(delivery.attempt)
            if len(attempts) < 4:
                rows(road.database, "select pg_terminate_backend(?)", session.scalar(text("select pg_backend_pid()")))
                session.execute(text("select 1"))

    on(inbox, kind, handle, retry=RetryPolicy(attempts=1))
    road.put(message("lost", key=KEYS[0]), *(message(key, key=key) for key in KEYS[1:]))
    inbox.run(road.database, road.log, once=True, concurrency=3)
    assert attempts == [1, 1, 1, 1]
    assert sorted(road.effects) == sorted(["lost", *KEYS[1:]])
    assert road.counts() == (8, 0, 0)


# What cannot be


@pytest.mark.parametrize("concurrency", [0, -1, 10_000])
def test_a_concurrency_that_cannot_be_is_refused_in_words(road: Road, concurrency: int) -> None:
    inbox = Inbox(GROUP)
    on(inbox, "def", effect)
    with pytest.raises(ConfigurationError, match=f"concurrency {concurrency} cannot be: from 1 to 500"):
        inbox.run(road.database, road.log, once=True, concurrency=concurrency)


def test_sqlite_with_its_one_writer_is_refused_in_words(sqlite_url: str, kind: str) -> None:
    road = Road(sqlite_url)
    inbox = Inbox(GROUP)
    on(inbox, kind, effect)
    with pytest.raises(ConfigurationError, match=r"SQLite has one writer at a time.*leave --concurrency out"):
        inbox.run(road.database, road.log, once=True, concurrency=2)
