"""The relay with the built-in log in another database: between servers, between files, and from one to the other."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from databases import by_key, drop_database, install, make_database, payloads, rows, wait_until, write
from sqlalchemy import make_url

from outbox.errors import ConfigurationError, Fenced, MessageAtFault, Permanent, Retryable, TimedOut
from outbox.tables import Place
from relay import Relay
from relay.database import open_database
from relay.database.contract import OutboxDatabase
from relay.logs.builtin.producer import BuiltinProducer
from relay.logs.registry import open_log
from relay.move.contract import Mover, Work
from relay.move.numbered import NumberedMover
from relay.reader.contract import Limits
from relay.registration import forget, register
from relay.status import status
from relay.topics import parse_topics
from tests.unit.transaction_pooler import TransactionPooler

PAIRS = ["postgresql-postgresql", "postgresql-sqlite", "sqlite-postgresql", "sqlite-sqlite"]
BEGUN = "select chunk, open_last, open_entries from relay_checkpoint order by step desc limit 1"


@pytest.fixture
def other_postgresql(postgresql_server_url: str) -> Iterator[str]:
    url = install(make_database(postgresql_server_url))
    yield url
    drop_database(url)


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """An outbox's database and a log's."""
    outbox, log = str(request.param).split("-")
    database = install(request.getfixturevalue(f"{outbox}_url"))
    other = install(f"sqlite:///{tmp_path / 'log.db'}") if log == "sqlite" else None
    return database, other or request.getfixturevalue("other_postgresql")


@pytest.fixture
def served(postgresql_url: str, other_postgresql: str) -> tuple[str, str]:
    return install(postgresql_url), other_postgresql


def drain(pair: tuple[str, str], **settings: Any) -> None:
    Relay(*pair, **settings).run(once=True)


class Standing:
    """A relay's parts, with the lease taken, to be moved step by step."""

    def __init__(self, pair: tuple[str, str], *, owner: str = "", name: str = "default") -> None:
        self.pair = pair
        self.database: OutboxDatabase = open_database(make_url(pair[0]), Place(), name=name, lease_seconds=10)
        log = open_log(pair[1])
        registration, _ = register(self.database, name=name, topics="*", log=log.identity(), latest=False)
        self.lease = self.database.lease(registration.incarnation, owner or str(uuid4()))
        assert self.lease.take().held is not None
        self.work = Work(name, self.database.installation(), registration.incarnation, log, "at-least-once")
        self.mover: Mover | None = None

    def opened(self) -> Any:
        self.mover = self.database.mover(self.lease, parse_topics("*"), self.work)
        return self.mover

    def leave(self, *, released: bool = True) -> None:
        """Go away as a crash would; `released` only spares the next one the wait."""
        if self.mover is not None:
            self.mover.close()
        if released:
            self.lease.release()
        self.database.close()


def crash_before_the_log_has_it(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, entries: int = 100) -> None:
    """Leave a chunk open in the outbox of which the log has nothing."""
    standing = Standing(pair)
    mover = standing.opened()
    mover._limits = Limits(entries=entries)

    def lost(*_: object) -> None:
        raise Retryable("the connection is lost")

    with monkeypatch.context() as broken, pytest.raises(Retryable):
        broken.setattr(BuiltinProducer, "produce", lost)
        mover.step()
    standing.leave()


def crash_after_the_log_has_it(pair: tuple[str, str]) -> None:
    """Leave a chunk open in the outbox that the log has."""
    standing = Standing(pair)
    mover = standing.opened()
    assert mover.step().entries == 0
    wait_until(mover._producer._pending[0][1].done, "the log has it")
    standing.leave()


def some(pair: tuple[str, str], begin: int, end: int) -> list[str]:
    for number in range(begin, end):
        write(pair[0], "orders", str(number), key="k")
    return [str(number) for number in range(end)]


def test_every_message_is_in_the_log_once_and_in_order_per_key(pair: tuple[str, str]):
    for number in range(60):
        write(pair[0], "orders" if number % 3 else "bills", str(number), key=str(number % 4))
    drain(pair)
    drain(pair)
    assert sorted(map(int, payloads(pair[1]))) == list(range(60))
    assert by_key(pair[1]).keys() == {"0", "1", "2", "3"}
    for topic in ("orders", "bills"):
        found = [int(number) for number in payloads(pair[1], topic)]
        for key in range(4):
            of_key = [number for number in found if number % 4 == key]
            assert of_key == sorted(of_key)
    assert rows(pair[0], BEGUN) == [(1, None, None)]
    assert [one.lag_messages for one in status(pair[0])] == [0]
    assert rows(pair[0], "select count(*) from log_record") == [(0,)]


def test_a_message_keeps_all_it_has_on_its_way(pair: tuple[str, str]):
    identity = str(uuid4()) if pair[0].startswith("postgresql") else uuid4().hex
    rows(
        pair[0],
        "insert into outbox (id, source, topic, key, type, payload, content_type, headers)"
        " values (?, ?, ?, ?, ?, ?, ?, ?)",
        identity, "/shop", "orders", "ключ", "Тип'\\", bytes(range(256)), "text/plain", '{"a": "\u00e9\\"", "n": 1}',
    )  # fmt: skip
    rows(pair[0], "insert into outbox (topic, payload) values ('orders', null)")
    drain(pair)
    records = [one for one in open_log(pair[1]).tail("orders", from_start=True, follow=False) if one]
    (full,) = [one.message for one in records if one.message.key]
    (bare,) = [one.message for one in records if not one.message.key]
    assert (full.source, full.key, full.type, full.content_type) == ("/shop", "ключ", "Тип'\\", "text/plain")
    assert full.payload == bytes(range(256))
    assert dict(full.headers) == {"a": 'é"', "n": "1"}
    assert full.id.hex == identity.replace("-", "")
    assert (bare.payload, bare.type, dict(bare.headers)) == (None, "orders", {})
    assert (bare.source or "").startswith("/outbox/")
    assert full.time is not None and full.sequence == 1


def test_a_chunk_that_the_log_does_not_have_is_sent_again_by_its_bounds(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    """INVARIANT I1: what was begun is sent as it was begun; what was written since goes behind it."""
    some(pair, 0, 5)
    crash_before_the_log_has_it(pair, monkeypatch)
    assert rows(pair[0], BEGUN) == [(0, 5, 5)]
    wanted = some(pair, 5, 8)
    drain(pair)
    assert by_key(pair[1]) == {"k": wanted}
    assert rows(pair[1], "select number from log_chunk order by step desc limit 1") == [(2,)]


def test_of_a_window_no_more_is_sent_again_than_was_open(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    """INVARIANT I1: the window holds more than the chunk that was open; its bounds are those that were saved."""
    wanted = some(pair, 0, 5)
    crash_before_the_log_has_it(pair, monkeypatch, entries=3)
    assert rows(pair[0], BEGUN) == [(0, 3, 3)]
    drain(pair)
    first = "select distinct open_last, open_entries from relay_checkpoint where chunk = 0 and open_last is not null"
    assert rows(pair[0], first) == [(3, 3)]
    assert by_key(pair[1]) == {"k": wanted}


def test_a_chunk_that_the_log_has_is_not_sent_again(pair: tuple[str, str]):
    """INVARIANT I1: the number that came with the records says so; without comparing it the chunk would come twice."""
    some(pair, 0, 5)
    crash_after_the_log_has_it(pair)
    assert rows(pair[0], BEGUN) == [(0, 5, 5)]
    wanted = some(pair, 5, 8)
    drain(pair)
    assert by_key(pair[1]) == {"k": wanted}


@pytest.mark.parametrize(
    "change", ["delete from outbox where position = 3", "update relay_checkpoint set open_digest = open_digest - 1"]
)
def test_an_open_chunk_that_is_no_longer_what_it_was_stops_the_relay_with_words(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, change: str
):
    """INVARIANT I7: a person deleted a message, or put another in its place, while nobody knew whether it was sent."""
    some(pair, 0, 5)
    crash_before_the_log_has_it(pair, monkeypatch)
    rows(pair[0], change)
    with pytest.raises(Permanent, match=r"up to position 5 was begun with 5 messages.*relay forget"):
        drain(pair)
    assert payloads(pair[1]) == []
    forget(pair[0], "default")
    drain(pair, start="latest")
    assert payloads(pair[1]) == []


@pytest.mark.parametrize(
    ("number", "story"), [(1, "the log was restored from a backup"), (7, "outbox's database was restored")]
)
def test_a_log_whose_number_is_another_than_the_outbox_knows_stops_the_relay_with_words(
    pair: tuple[str, str], number: int, story: str
):
    """INVARIANT I7: a log or an outbox that came back from a backup is said, and not guessed about."""
    for begin in (0, 2, 4):
        some(pair, begin, begin + 2)
        drain(pair)
    rows(pair[1], "update log_chunk set number = ?", number)
    some(pair, 6, 8)
    with pytest.raises(Permanent, match=rf"knows 3 chunks as done and the log has {number}: .*{story}.*relay forget"):
        drain(pair)
    assert len(payloads(pair[1])) == 6
    rows(pair[1], "update log_chunk set number = 3")
    drain(pair)
    assert len(payloads(pair[1])) == 8


def test_a_log_without_a_number_is_behind_unless_nothing_was_sent(pair: tuple[str, str]):
    """A log moved from the outbox's own database with its identity has none, and nothing was numbered: that is fine."""
    some(pair, 0, 2)
    drain(pair)
    rows(pair[1], "delete from log_chunk")
    with pytest.raises(Permanent, match="the log has 0"):
        drain(pair)


def test_a_relay_that_lost_its_lease_is_fenced_rather_than_told_of_a_wrong_number(pair: tuple[str, str]):
    """Who overslept may see any number: only the newest epoch may say that two databases do not match."""
    some(pair, 0, 3)
    drain(pair)
    stale = Standing(pair)
    rows(pair[0], "update relay_checkpoint set lease_until = '2000-01-01 00:00:00.000000'")
    fresh = Standing(pair)
    rows(pair[1], "update log_chunk set number = 9")
    with pytest.raises(Fenced):
        stale.opened()
    fresh.leave()
    stale.leave()


def test_an_older_relay_cannot_append_once_a_newer_one_has_opened_the_log(pair: tuple[str, str]):
    """INVARIANT I6: the log refuses it, whatever it believes; its chunk would come twice, or before its time."""
    wanted = some(pair, 0, 3)
    stale = Standing(pair)
    old = stale.opened()
    rows(pair[0], "update relay_checkpoint set lease_until = '2000-01-01 00:00:00.000000'")
    fresh = Standing(pair)
    new = fresh.opened()
    old._lease = fresh.lease  # as if its steps still went through
    with pytest.raises(Retryable, match="opened anew") as caught:
        old.step()
        old.finish()
    assert isinstance(caught.value.__cause__, Fenced)
    assert payloads(pair[1]) == []
    rows(pair[0], "delete from relay_checkpoint where step = (select max(step) from relay_checkpoint)")
    new.close()
    fresh.leave()
    stale.leave()
    drain(pair)
    assert by_key(pair[1]) == {"k": wanted}


def test_a_message_at_fault_stops_behind_everything_before_it_and_deleting_it_helps(pair: tuple[str, str]):
    some(pair, 0, 3)
    rows(pair[0], "insert into outbox (topic, key, payload, headers) values ('orders', 'k', ?, '[1]')", b"broken")
    some(pair, 3, 5)
    with pytest.raises(MessageAtFault, match=r"'orders' \(position 4\).*headers"):
        drain(pair)
    assert by_key(pair[1]) == {"k": ["0", "1", "2"]}
    rows(pair[0], "delete from outbox where position = 4")
    drain(pair)
    assert by_key(pair[1]) == {"k": ["0", "1", "2", "3", "4"]}


def test_what_postgresql_cannot_store_of_an_sqlite_outbox_is_that_messages_fault(
    sqlite_url: str, other_postgresql: str
):
    pair = install(sqlite_url), other_postgresql
    some(pair, 0, 3)
    rows(sqlite_url, "insert into outbox (topic, key, payload) values ('orders', ?, ?)", "a\0b", b"odd")
    some(pair, 3, 5)
    with pytest.raises(MessageAtFault, match=r"position 4.*its key has a NUL.*delete its row"):
        drain(pair)
    assert by_key(other_postgresql) == {"k": ["0", "1", "2"]}
    rows(sqlite_url, "delete from outbox where position = 4")
    drain(pair)
    assert by_key(other_postgresql) == {"k": ["0", "1", "2", "3", "4"]}


def test_a_chunk_that_takes_too_long_is_halved_and_not_given_up(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    """Without this, two relays take over from each other for ever, each with a chunk that takes too long."""
    wanted = some(pair, 0, 40)
    append, sizes = BuiltinProducer._append, []

    def slow(self: BuiltinProducer, number: int, chunk: Any) -> Any:
        sizes.append(getattr(chunk, "entries", None) or len(chunk))
        if sizes[-1] > 10:
            raise TimedOut("took too long")
        return append(self, number, chunk)

    monkeypatch.setattr(BuiltinProducer, "_append", slow)
    standing = Standing(pair)
    mover = standing.opened()
    mover._limits = Limits(entries=40)
    while not mover.step().empty:
        pass
    standing.leave()
    assert sizes[:3] == [40, 20, 10]
    assert by_key(pair[1]) == {"k": wanted}


def test_a_time_out_of_the_outbox_says_nothing_about_what_the_log_has(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    """INVARIANT I1: taken for the log's, the chunk on its way would be begun anew, smaller, and its rest come twice."""
    wanted = some(pair, 0, 6)
    standing = Standing(pair)
    mover = standing.opened()
    mover.step()
    settle, answers = BuiltinProducer.settle, iter([False])

    def no_answer_yet(self: BuiltinProducer, seconds: float) -> Any:
        return settle(self, seconds) if next(answers, True) else None

    def busy(**_: object) -> None:
        raise TimedOut("the file is busy")

    with monkeypatch.context() as slow, pytest.raises(TimedOut):
        slow.setattr(BuiltinProducer, "settle", no_answer_yet)
        slow.setattr(standing.lease, "advance", busy)
        mover.step()
    assert rows(pair[0], BEGUN) == [(0, 6, 6)]
    assert mover._state.open is not None, "nothing but the log's own answer ends the doubt"
    standing.leave()
    drain(pair)
    assert by_key(pair[1]) == {"k": wanted}


def test_a_window_of_many_chunks_goes_by_many_numbers(pair: tuple[str, str]):
    wanted = some(pair, 0, 50)
    standing = Standing(pair)
    mover = standing.opened()
    for _ in range(200):
        mover._limits = Limits(entries=7)
        if mover.step().empty:
            break
    standing.leave()
    assert by_key(pair[1]) == {"k": wanted}
    assert rows(pair[1], "select max(number) from log_chunk") == [(8,)]


def test_a_relay_is_not_to_be_pointed_at_another_log(pair: tuple[str, str], tmp_path: Path):
    some(pair, 0, 1)
    drain(pair)
    another = install(f"sqlite:///{tmp_path / 'another.db'}")
    with pytest.raises(ConfigurationError, match=r"registered for another log.*relay forget"):
        drain((pair[0], another))


def test_a_log_that_came_into_the_outboxs_own_database_settles_what_was_open(served: tuple[str, str]):
    """The chunk is in the log, and the outbox does not know: a relay that appends by itself would send it again."""
    wanted = some(served, 0, 4)
    crash_after_the_log_has_it(served)
    for table in ("log_identity", "log_topic", "log_record", "log_chunk"):
        with psycopg.connect(served[1]) as source, psycopg.connect(served[0]) as target:
            target.execute(f"delete from {table}")
            with (
                source.cursor().copy(f"copy {table} to stdout") as out,
                target.cursor().copy(f"copy {table} from stdin") as into,
            ):
                for block in out:
                    into.write(block)
    rows(served[0], "select setval(pg_get_serial_sequence('log_topic', 'topic_id'), 10)")
    drain((served[0], served[0]))
    assert by_key(served[0]) == {"k": wanted}


def test_stopping_waits_for_what_is_on_its_way_and_saves_it(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    wanted = some(pair, 0, 5)
    stop, step = threading.Event(), NumberedMover.step

    def stop_at_the_first_chunk(self: NumberedMover) -> Any:
        moved = step(self)
        if self._sent is not None:
            stop.set()
        return moved

    monkeypatch.setattr(NumberedMover, "step", stop_at_the_first_chunk)
    Relay(*pair).run(stop=stop)
    assert rows(pair[0], BEGUN) == [(1, None, None)]
    assert by_key(pair[1]) == {"k": wanted}


LOG_TABLES = ("identity", "topic", "record", "chunk", "group", "member", "group_offset")
BROKEN_LOGS = {
    "no tables": (f"drop table {', '.join(f'log_{table}' for table in LOG_TABLES)}", r"not there.*outbox init --log"),
    "one is missing": ("drop table log_chunk", "log_chunk.*is missing"),
    "another version": ("comment on table log_record is 'outbox-relay-inbox: log, version 9'", "version 9"),
    "somebody else's": ("alter table log_record rename column epoch to era", r"log_record\"?\.epoch is missing"),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN_LOGS)
def test_a_log_database_that_is_not_ours_is_refused_in_words(served: tuple[str, str], broken: str):
    statement, words = BROKEN_LOGS[broken]
    rows(served[1], statement)
    with pytest.raises(ConfigurationError, match=words):
        drain(served)


def test_a_log_file_without_our_tables_is_refused_in_words(sqlite_url: str, tmp_path: Path):
    path = tmp_path / "empty.db"
    path.touch()
    with pytest.raises(ConfigurationError, match=r"log tables are not there.*outbox init --log"):
        drain((install(sqlite_url), f"sqlite:///{path}"))


def test_a_schema_that_does_not_exist_is_refused_in_words(served: tuple[str, str]):
    with pytest.raises(ConfigurationError, match=r"not there in schema nope: run `outbox init --log .*\?schema=nope'`"):
        drain((served[0], f"{served[1]}?schema=nope"))


def test_a_log_elsewhere_may_have_a_prefix_of_its_own_and_one_in_the_outboxs_database_may_not(served: tuple[str, str]):
    with pytest.raises(ConfigurationError, match="leave them out of --log"):
        drain((served[0], f"{served[0]}?prefix=events_"))
    for table in LOG_TABLES:
        rows(served[1], f"alter table log_{table} rename to events_log_{table}")
    write(served[0], "orders", "1")
    drain((served[0], f"{served[1]}?prefix=events_"))
    assert rows(served[1], "select count(*) from events_log_record") == [(1,)]


def test_a_transaction_pooler_in_front_of_the_log_is_refused(served: tuple[str, str]):
    with TransactionPooler(served[1]) as pooled, pytest.raises(ConfigurationError, match="transaction pooler"):
        drain((served[0], pooled))


def test_the_staging_table_leaves_nothing_in_the_catalogs(served: tuple[str, str]):
    """One made or truncated per chunk would leave dead rows in pg_class and pg_attribute with every chunk."""
    standing = Standing(served)
    mover = standing.opened()
    with closing(psycopg.connect(served[1], autocommit=True)) as connection:
        query = "select relfilenode from pg_class where relname = 'log_staging'"
        before = connection.execute(query).fetchone()
        for number in range(3):
            write(served[0], "orders", str(number))
            mover.step()
            mover.finish()
        assert connection.execute(query).fetchone() == before
    standing.leave()
