"""`outbox init` and `outbox check` as they are called from a shell: exit codes, and one clear line for each error."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from postgresql_server import PostgresqlServer

from outbox.process.database import connected
from outbox.process.urls import parse_url
from tests.unit.running import refused, run_here
from tests.unit.transaction_pooler import TransactionPooler

AWAY = "postgresql+asyncpg://app:secret@127.0.0.1:1/app"


def outbox(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_here("outbox", *arguments, **environment)


def test_tables_are_made_once_and_found_as_expected(database_url: str) -> None:
    first = outbox("init", "--database", database_url)
    assert (first.returncode, first.stdout) == (0, "") and "made inbox, " in first.stderr
    again = outbox("init", OUTBOX_DATABASE=database_url)
    assert again.returncode == 0 and "all tables were there already" in again.stderr
    check = outbox("check", "--database", database_url)
    assert (check.returncode, check.stdout, check.stderr) == (0, "outbox: there\ninbox: there\nlog: there\n", "")


def test_the_log_alone_is_made_where_its_url_says(sqlite_url: str) -> None:
    made = outbox("init", "--log", f"{sqlite_url}?partitions=3&prefix=events_", OUTBOX_DATABASE=AWAY)
    assert made.returncode == 0, made.stderr
    check = outbox("check", "--database", sqlite_url, "--prefix", "events_")
    assert (check.returncode, check.stdout) == (0, "outbox: absent\ninbox: absent\nlog: there\n")


def test_check_says_each_difference_on_a_line_and_fails(sqlite_url: str) -> None:
    assert outbox("init", "--database", sqlite_url).returncode == 0
    with connected(parse_url(sqlite_url)) as connection:
        connection.exec_driver_sql("drop table relay")
        connection.exec_driver_sql("drop table inbox")
        connection.commit()
    check = outbox("check", "--database", sqlite_url)
    assert check.returncode == 1
    assert check.stderr.splitlines() == [
        'outbox: error: table "relay" is missing: run `outbox init`',
        'outbox: error: table "inbox" is missing: run `outbox init`',
    ]


def test_check_of_a_database_without_our_tables_is_refused(postgresql_url: str) -> None:
    refused(outbox("check", "--database", postgresql_url), 2, "has none of our tables: run `outbox init`")


WRONG = {
    "unknown scheme": (["--database", "mysql://app:secret@db/app"], "unknown database scheme 'mysql'"),
    "no URL": (["--database", "secret"], "the database URL cannot be read"),
    "no database": ([], "no database is named: give --database URL, or set OUTBOX_DATABASE or DATABASE_URL"),
    "unknown setting": (["--database", f"{AWAY}?secure=yes"], 'invalid URI query parameter: "secure"'),
    "wrong setting": (["--database", f"{AWAY}?sslmode=maybe"], 'invalid sslmode value: "maybe"'),
    "unknown setting of a file": (["--database", "sqlite:///x.db?mode=ro"], "unknown setting mode"),
    "a database in memory": (["--database", "sqlite://"], "name a file, sqlite:///file.db"),
    "a log without tables": (["--log", "kafka://app:secret@k:9092"], "a log at kafka:// has no tables to make"),
    "two at once": (["--log", "sqlite:///a.db", "--database", "sqlite:///b.db"], "give one of them"),
    "a dialect without --sql": (["--database", AWAY, "--dialect", "sqlite"], "--dialect goes with --sql"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_configured_wrongly_is_said_and_exits_2(what: str) -> None:
    arguments, words = WRONG[what]
    refused(outbox("init", *arguments), 2, words)


def test_a_database_that_does_not_answer_exits_1_when_the_wait_is_over() -> None:
    result = outbox("check", "--database", AWAY, "--wait", "0.2")
    refused(result, 1, "cannot connect to postgresql+asyncpg://app:***@127.0.0.1:1/app: ")
    assert "no answer yet; waiting up to 0.2 s" in result.stderr


def test_an_unknown_database_or_role_counts_as_unreachable(postgresql_server_url: str) -> None:
    unknown = postgresql_server_url.rsplit("/", 1)[0] + "/no_such_database"
    refused(outbox("init", "--database", unknown, "--wait", "0"), 1, 'database "no_such_database" does not exist')
    stranger = postgresql_server_url.replace("postgres@", "no_such_role:secret@")
    if stranger != postgresql_server_url:
        refused(outbox("init", "--database", stranger, "--wait", "0"), 1, "no_such_role")


def test_a_missing_schema_exits_2_with_the_statement_that_makes_it(postgresql_url: str) -> None:
    refused(outbox("init", "--database", postgresql_url, "--schema", "events"), 2, 'run `create schema "events"` first')


def test_a_missing_driver_exits_2_and_names_the_extra() -> None:
    # In a process of its own, where psycopg was never imported.
    start = "import sys; sys.modules['psycopg'] = None; from outbox.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", start, "init", "--database", AWAY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    refused(result, 2, "pip install 'outbox-relay-inbox[postgresql]'")


def test_a_traceback_comes_only_with_debug() -> None:
    result = outbox("init", "--database", AWAY, "--wait", "0", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "Unreachable" in result.stderr
    assert "secret" not in result.stderr


def test_a_standby_is_refused(own_postgresql_server: PostgresqlServer) -> None:
    server = own_postgresql_server
    assert outbox("init", "--database", server.url()).returncode == 0
    server.stop()
    signal = Path(server.data, "standby.signal")
    signal.touch()
    shutil.chown(signal, server.data.stat().st_uid)
    server.start()
    refused(outbox("init", "--database", server.url()), 2, "this server is a standby: connect to the primary")
    refused(outbox("check", "--database", server.url()), 2, "this server is a standby: connect to the primary")


def test_two_processes_that_make_the_tables_at_once_both_succeed(database_url: str) -> None:
    command = [sys.executable, "-m", "outbox.cli", "init", "--database", database_url]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("made" in words for words in said) == [False, True], said


def test_a_transaction_pooler_is_refused_by_check_and_does_for_init(postgresql_url: str) -> None:
    with TransactionPooler(postgresql_url) as pooled:
        assert outbox("init", "--database", pooled).returncode == 0
        refused(outbox("check", "--database", pooled), 2, "goes through a transaction pooler: relay and inbox need")
    assert outbox("check", "--database", postgresql_url).returncode == 0
