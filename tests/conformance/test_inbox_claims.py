"""Claims: consumers that both believe they own a partition, crashes at the worst moment, and where a group resumes."""

import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from databases import wait_until
from inbox_hands import GROUP, PARTITION, Hand, newest, register, registration, wait_until_waiting, waits_for
from inbox_road import Road, effect, on
from sqlalchemy import text

from inbox import Inbox
from inbox.claims import Claim
from outbox.errors import Fenced, Forgotten, OutboxError, Permanent
from outbox.message import Offset
from relay.logs.contract import Bounds
from relay.logs.memory import MemoryLog


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


@pytest.fixture
def hands(road: Road) -> Iterator[Callable[[], Hand]]:
    made: list[Hand] = []

    def make() -> Hand:
        made.append(Hand(road.database))
        return made[-1]

    yield make
    for hand in made:
        hand.close()


IDS = [("/shop", uuid4()) for _ in range(10)]


# One claim


def test_a_claim_tells_which_messages_are_new(hands: Callable[[], Hand]) -> None:
    hand = hands()
    register(hand)
    with hand.connection.begin():
        assert hand.take(Claim(0, Offset(0)), 3, IDS[:3]) is None
    with hand.connection.begin():
        assert hand.take(Claim(1, Offset(3)), 6, IDS[1:5]) == frozenset(IDS[3:5])
    with hand.connection.begin():
        assert hand.take(Claim(2, Offset(6)), 7, []) is None
    assert newest(hand) == Claim(3, Offset(7))


def test_a_claim_that_was_taken_is_fenced(hands: Callable[[], Hand]) -> None:
    one, two = hands(), hands()
    register(one)
    with one.connection.begin():
        one.take(Claim(0, Offset(0)), 3, IDS[:3])
    with pytest.raises(Fenced), two.connection.begin():
        two.take(Claim(0, Offset(0)), 5, IDS[:5])
    assert newest(one) == Claim(1, Offset(3))


def test_a_run_that_does_not_begin_where_the_newest_claim_ends_is_fenced(hands: Callable[[], Hand]) -> None:
    """Compared by its number alone, a step that somebody else made with another end lets records be skipped."""
    hand = hands()
    register(hand)
    with hand.connection.begin():
        hand.take(Claim(0, Offset(0)), 3, IDS[:3])
    with pytest.raises(Fenced), hand.connection.begin():
        hand.take(Claim(1, Offset(5)), 10, IDS[5:])
    assert newest(hand) == Claim(1, Offset(3))


def test_a_claim_that_is_rolled_back_leaves_no_ids(road: Road, hands: Callable[[], Hand]) -> None:
    hand = hands()
    register(hand)
    with hand.connection.begin() as transaction:
        hand.take(Claim(0, Offset(0)), 3, IDS[:3])
        transaction.rollback()
    assert road.ids() == 0
    assert newest(hand) == Claim(0, Offset(0))


def test_a_twin_waits_for_the_claim_and_is_fenced_when_the_other_commits(road: Road, hands: Callable[[], Hand]) -> None:
    one, two = hands(), hands()
    register(one)
    failed: list[BaseException] = []

    def twin() -> None:
        try:
            with two.connection.begin():
                two.take(Claim(0, Offset(0)), 5, IDS[:5])
        except Fenced as error:
            failed.append(error)

    with one.connection.begin():
        one.take(Claim(0, Offset(0)), 3, IDS[:3])
        thread = threading.Thread(target=twin)
        thread.start()
        wait_until_waiting(road.database, thread)
    thread.join(20)
    assert len(failed) == 1
    assert newest(one) == Claim(1, Offset(3))
    assert road.ids() == 3


def test_a_twin_goes_on_when_the_other_rolls_back(road: Road, hands: Callable[[], Hand]) -> None:
    one, two = hands(), hands()
    register(one)
    taken: list[Any] = []

    def twin() -> None:
        with two.connection.begin():
            taken.append(two.take(Claim(0, Offset(0)), 5, IDS[:5]))

    with one.connection.begin() as transaction:
        one.take(Claim(0, Offset(0)), 3, IDS[:3])
        thread = threading.Thread(target=twin)
        thread.start()
        wait_until_waiting(road.database, thread)
        transaction.rollback()
    thread.join(20)
    assert taken == [None]
    assert newest(one) == Claim(1, Offset(5))


def test_a_late_insert_of_a_pruned_step_is_fenced(postgresql_url: str) -> None:
    """The schedule that random faults do not find: a claim hangs on an id while steps go on and are pruned.

    Without the lock on the step it was decided on, its own step finds no conflict, because that row was pruned.
    """
    road = Road(postgresql_url)
    one, late = Hand(road.database), Hand(road.database)
    register(one)
    outcome: list[Any] = []
    first, *others = sorted(IDS)  # ids are inserted in this order: the late claim hangs before it has inserted any

    def twin() -> None:
        try:
            with late.connection.begin():
                outcome.append(late.take(Claim(0, Offset(0)), 10, IDS))
        except OutboxError as error:
            outcome.append(error)

    hanging = psycopg.connect(road.database)
    hanging.execute("insert into inbox (consumer_group, source, message_id) values (%s, %s, %s)", (GROUP, *first))
    thread = threading.Thread(target=twin)
    with one.connection.begin():
        one.take(Claim(0, Offset(0)), 3, others[:3])
        thread.start()
        wait_until_waiting(road.database, thread)
    wait_until(lambda: waits_for(road.database) == hanging.info.backend_pid, "the twin waits for the hanging insert")
    with one.connection.begin():
        one.take(Claim(1, Offset(3)), 5, others[3:5])
    try:
        with one.dialect.translated(), one.connection.begin():
            one.connection.execute(text("set local lock_timeout = '200ms'"))
            registration().prune(one.connection, PARTITION, Claim(2, Offset(5)), 0)
    except OutboxError:
        pass  # as it must be: the twin holds the step
    hanging.rollback()
    thread.join(20)
    hanging.close()
    assert len(outcome) == 1
    assert isinstance(outcome[0], Fenced)
    assert newest(one) == Claim(2, Offset(5))
    assert road.ids() == 5
    one.close()
    late.close()


# Registration


def test_registration_is_made_once_and_not_again_after_its_claims_were_pruned(hands: Callable[[], Hand]) -> None:
    """Step 0 made by a plain insert comes back when it was pruned, and hands out everything a second time."""
    hand = hands()
    assert register(hand, 2) is True
    with hand.connection.begin():
        hand.take(Claim(0, Offset(0)), 3, IDS[:3])
    with hand.connection.begin():
        registration().prune(hand.connection, PARTITION, newest_inside(hand), 0)
    assert register(hand, 2) is False
    assert newest(hand) == Claim(1, Offset(3))
    assert newest(hand, 1) == Claim(0, Offset(0))


def newest_inside(hand: Hand) -> Claim:
    return registration().newest(hand.connection, PARTITION)


def test_partitions_that_are_added_begin_at_0_and_a_new_topic_at_its_first_record(hands: Callable[[], Hand]) -> None:
    hand = hands()
    register(hand, 1, first=7, end=9)
    register(hand, 3, first=7, end=9)
    assert [newest(hand, number).end for number in range(3)] == [7, 0, 0]


def test_latest_begins_at_the_end(hands: Callable[[], Hand]) -> None:
    hand = hands()
    register(hand, 2, latest=True, end=9)
    register(hand, 3, latest=True, end=11)
    assert [newest(hand, number).end for number in range(3)] == [9, 9, 0]


def test_a_topic_made_anew_is_read_from_its_start_and_its_old_claims_go(road: Road, hands: Callable[[], Hand]) -> None:
    hand = hands()
    register(hand, 1)
    with hand.connection.begin():
        hand.take(Claim(0, Offset(0)), 3, IDS[:3])
    anew = PARTITION._replace(incarnation="22222222-2222-2222-2222-222222222222")
    with hand.connection.begin():
        registration().register(hand.connection, {anew: Bounds(Offset(0), Offset(5))}, latest=True)
    with hand.connection.begin():
        assert registration().newest(hand.connection, anew) == Claim(0, Offset(0))
        with pytest.raises(Forgotten):
            registration().newest(hand.connection, PARTITION)
    assert road.ids() == 3


def test_a_log_that_lost_what_comes_next_is_not_skipped_over(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox(GROUP)
    on(inbox, "def", effect)
    road.write("one", "two")
    inbox.run(road.database, road.log, once=True)
    real = MemoryLog.partitions
    for first, end, words in ((5, 9, "begins at 5"), (0, 1, "ends at 1")):

        def partitions(self: MemoryLog, topics: Any, first: int = first, end: int = end) -> Any:
            return {
                one: Bounds(Offset(first), Offset(end)) if held.end else held
                for one, held in real(self, topics).items()
            }

        monkeypatch.setattr(MemoryLog, "partitions", partitions)
        with pytest.raises(Permanent, match=words) as raised:
            inbox.run(road.database, road.log, once=True)
        assert "topic 'orders'" in str(raised.value)
        assert "offset 2" in str(raised.value)
