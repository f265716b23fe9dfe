"""The command `relay` from outside: what it prints, how it ends, and what it says when something is wrong."""

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from uuid import UUID

import pytest

from outbox.message import Message, Offset
from relay.logs.contract import Partition, Record
from relay.tail import as_object, as_text
from tests.unit.running import refused, run_here


def relay(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_here("relay", *arguments, **environment)


def record(*, key: str | None = "42", payload: bytes | None = b'{"id":42}') -> Record:
    message = Message(UUID(int=7), "orders", key, "OrderPlaced", payload, "application/json", source="/orders")
    return Record(Partition("orders", "i", 3), Offset(17), message, {"ce_id": "7", "mine": "x"})


def test_a_record_as_json_has_its_place_key_type_payload_and_headers() -> None:
    assert as_object(record()) == {
        "topic": "orders",
        "partition": 3,
        "offset": 17,
        "id": "00000000-0000-0000-0000-000000000007",
        "key": "42",
        "type": "OrderPlaced",
        "payload": '{"id":42}',
        "headers": {"ce_id": "7", "mine": "x"},
    }


def test_what_is_not_utf_8_is_printed_in_base64_instead() -> None:
    found = as_object(record(key=b"k\xff".decode("utf-8", "surrogateescape"), payload=b"\xfe\x00"))
    assert (base64.b64decode(found["key_base64"]), base64.b64decode(found["payload_base64"])) == (b"k\xff", b"\xfe\x00")
    assert found.keys().isdisjoint({"key", "payload"})


def test_a_missing_key_and_a_tombstone_are_null() -> None:
    found = as_object(record(key=None, payload=None))
    assert (found["key"], found["payload"]) == (None, None)


def test_a_record_as_text_is_one_line_that_gives_the_terminal_no_commands() -> None:
    assert as_text(record()) == 'orders/3@17  OrderPlaced  key=42  {"id":42}'
    assert as_text(record(key=None, payload=None)) == "orders/3@17  OrderPlaced  (tombstone)"
    text = as_text(record(key=b"\xff".decode("utf-8", "surrogateescape"), payload=b"a\n\x1b[2Jb"))
    assert text == "orders/3@17  OrderPlaced  key=\ufffd  a \\x1b[2Jb"


@pytest.fixture
def filled(sqlite_url: str) -> str:
    """A database with three records in its log."""
    assert run_here("outbox", "init", "--database", sqlite_url).returncode == 0
    write(sqlite_url, 3)
    return sqlite_url


def write(url: str, count: int) -> None:
    """Write messages by plain SQL and relay them."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        for number in range(count):
            statement = "insert into outbox (topic, key, type, payload) values ('orders', 'k', 'Counted', ?)"
            connection.execute(statement, (str(number).encode(),))
    done = relay("run", "--once", "--database", url, "--log", url)
    assert done.returncode == 0, done.stderr


def test_once_prints_what_the_log_holds_and_ends(filled: str) -> None:
    printed = relay("tail", "orders", "--once", "--json", RELAY_LOG=filled)
    assert printed.returncode == 0, printed.stderr
    assert [json.loads(line)["payload"] for line in printed.stdout.splitlines()] == ["0", "1", "2"]
    text = relay("tail", "orders", "--once", "--log", filled).stdout
    assert [line.split("  ")[1:] for line in text.splitlines()] == [["Counted", "key=k", str(n)] for n in range(3)]


def test_a_topic_that_does_not_exist_is_a_notice(filled: str) -> None:
    printed = relay("tail", "ordres\x1b[2J", "--once", "--log", filled)
    assert (printed.returncode, printed.stdout) == (0, "")
    assert "the log has no topic ordres\\x1b[2J" in printed.stderr


def test_status_is_a_list_of_objects_or_a_table(filled: str) -> None:
    (found,) = json.loads(relay("status", "--json", "--database", filled).stdout)
    assert ",".join(found) == "relay,lag_messages,lag_seconds,position,owner,epoch,dead_letters,unclaimed,maybe_lost"
    assert (found["relay"], found["lag_messages"], found["position"], found["owner"]) == ("default", 0, 3, None)
    heading, line = relay("status", "--database", filled).stdout.splitlines()
    assert heading.split()[:2] == ["relay", "lag_messages"] and line.split()[:2] == ["default", "0"]


def test_a_relay_that_is_forgotten_is_gone_from_status(filled: str) -> None:
    assert relay("forget", "default", "--database", filled).returncode == 0
    empty = relay("status", "--database", filled)
    assert (empty.returncode, len(empty.stdout.splitlines())) == (0, 1)
    assert json.loads(relay("status", "--json", "--database", filled).stdout) == []


AWAY = "postgresql+asyncpg://app:secret@127.0.0.1:1/app"
WRONG = {
    "an unknown log": (["run", "--database", AWAY, "--log", "smoke://x", "--wait", "0", "--once"], 2, "'smoke'"),
    "no log": (["run", "--database", AWAY], 2, "no log is named: give --log URL, or set RELAY_LOG"),
    "no database": (["status"], 2, "no database is named"),
    "a database that is away": (["status", "--database", AWAY, "--wait", "0"], 1, "app:***@127.0.0.1:1/app"),
    "a log that is away": (["tail", "orders", "--log", AWAY, "--wait", "0", "--once"], 1, "127.0.0.1"),
    "no settings": (["status", "--config", "/no/such/file"], 2, "the settings file /no/such/file cannot be read"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_in_one_line(what: str) -> None:
    arguments, code, words = WRONG[what]
    refused(relay(*arguments), code, words)


def test_a_database_without_our_tables_is_refused(sqlite_url: str) -> None:
    sqlite3.connect(sqlite_url.removeprefix("sqlite:///")).close()
    refused(relay("run", "--once", "--database", sqlite_url, "--log", sqlite_url), 2, "run `outbox init`")


@contextmanager
def following(url: str) -> Iterator[subprocess.Popen[str]]:
    """A `relay tail` that follows, in a process of its own."""
    command = [sys.executable, "-m", "relay.cli", "tail", "orders", "--from-start", "--json", "--log", url]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_following_prints_each_record_at_once_and_ends_quietly_on_sigterm(filled: str) -> None:
    with following(filled) as process:
        assert process.stdout is not None and process.stderr is not None
        assert [json.loads(process.stdout.readline())["payload"] for _ in range(3)] == ["0", "1", "2"]
        write(filled, 1)
        assert json.loads(process.stdout.readline())["offset"] == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


def test_following_ends_quietly_when_nobody_reads_any_more(filled: str) -> None:
    # As in `relay tail orders | head -1`: nothing more is written, so that no write can fail.
    with following(filled) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in range(3):
            process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("text", ["0", "0d", "-1d", "7", "week", "40000d"])
def test_a_retention_that_will_not_do_is_wrong_usage(text: str) -> None:
    found = relay("run", "--database", "sqlite:///a.db", "--log", "sqlite:///a.db", "--retain", text)
    assert found.returncode == 2
    assert "write" in found.stderr and "Traceback" not in found.stderr
