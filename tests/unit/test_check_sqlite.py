"""`differences` names each thing that is wrong with our tables in an SQLite file, and says what to do."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import MetaData, create_engine

from outbox.check import SETS, differences, present
from outbox.errors import ConfigurationError, Unreachable
from outbox.install import ddl, install
from outbox.process.database import connected
from outbox.process.urls import parse_url
from outbox.tables import Place, inbox_tables, log_tables, outbox_tables

HERE = Place()
REMADE = "SQLite cannot alter that in place: rename the table, run `outbox init`, and copy the rows"


def file_of(url: str) -> str:
    return url.removeprefix("sqlite:///")


def run(url: str, script: str) -> None:
    with closing(sqlite3.connect(file_of(url))) as connection:
        connection.executescript(script)


def found(url: str, place: Place = HERE) -> list[str]:
    with connected(parse_url(url)) as connection:
        return differences(connection, place, SETS)


@pytest.fixture
def installed(sqlite_url: str) -> str:
    with connected(parse_url(sqlite_url), create=True) as connection:
        assert len(install(connection, HERE)) == 13
    return sqlite_url


@pytest.mark.parametrize("place", [HERE, Place("main"), Place(None, "app_"), Place(None, 'odd "prefix_')])
def test_what_install_makes_has_no_differences(sqlite_url: str, place: Place) -> None:
    with connected(parse_url(sqlite_url), create=True) as connection:
        assert present(connection, place) == set()
        install(connection, place)
        assert differences(connection, place, SETS) == []
        assert present(connection, place) == set(SETS)
        assert install(connection, place) == []


def test_the_file_is_in_wal_mode_after_install(installed: str) -> None:
    with closing(sqlite3.connect(file_of(installed))) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)


def test_what_the_printed_sql_makes_has_no_differences(sqlite_url: str) -> None:
    run(sqlite_url, ddl("sqlite", HERE))
    assert found(sqlite_url) == []


def test_what_create_all_of_an_application_makes_has_no_differences(sqlite_url: str) -> None:
    metadata = MetaData(naming_convention={"ck": "ck_%(table_name)s_%(constraint_name)s", "pk": "pk_%(table_name)s"})
    for register in (outbox_tables, inbox_tables, log_tables):
        register(metadata)
    engine = create_engine(sqlite_url)
    metadata.create_all(engine)
    engine.dispose()
    assert found(sqlite_url) == []


def remade(table: str, old: str, new: str) -> str:
    """Return what to replace in the statement by which a table is made."""
    return f"{table}\n{old}\n{new}"


BROKEN = {
    "a type differs": (remade("outbox", 'key" TEXT', 'key" INTEGER'), '"outbox".key has type INTEGER, not TEXT'),
    "a column is missing": (remade("outbox", "source TEXT,", ""), '"outbox".source is missing'),
    "a column may be null": (remade("outbox", "topic TEXT NOT NULL", "topic TEXT"), '"outbox".topic must not be null'),
    "a column may not be null": (
        remade("outbox", "payload BLOB", "payload BLOB NOT NULL"),
        '"outbox".payload may be null',
    ),
    "a default differs": (
        remade("outbox", "created_at DATETIME DEFAULT CURRENT_TIMESTAMP", "created_at DATETIME DEFAULT '2000-01-01'"),
        "\"outbox\".created_at has default '2000-01-01', not CURRENT_TIMESTAMP",
    ),
    "a position is used again": (
        remade("outbox", " AUTOINCREMENT", ""),
        '"outbox".position is not generated always as identity',
    ),
    "any topic is let in": (
        remade("outbox", "topic not glob '*[^A-Za-z0-9._-]*'", "true"),
        '"outbox" lacks check (length(topic) between 1 and 249',
    ),
    "two rows may be the log's identity": (
        remade("log_identity", "CHECK (single = 1)", "CHECK (single > 0)"),
        '"log_identity" lacks check (single = 1)',
    ),
    "the primary key is another": (
        remade("inbox", "PRIMARY KEY (consumer_group, source, message_id)", "PRIMARY KEY (consumer_group, message_id)"),
        '"inbox" has not the primary key ("consumer_group", "source", "message_id")',
    ),
    "a unique key is missing": (
        remade("log_topic", "UNIQUE (name)", "CHECK (true)"),
        '"log_topic" has no unique key ("name")',
    ),
    "a foreign column refuses our rows": (
        remade("relay", "topics TEXT NOT NULL", "topics TEXT NOT NULL, tenant TEXT NOT NULL"),
        '"relay".tenant is not ours, and refuses our rows',
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named_with_what_to_do(installed: str, what: str) -> None:
    change, expected = BROKEN[what]
    table, old, new = change.split("\n")
    with closing(sqlite3.connect(file_of(installed), isolation_level=None)) as connection:
        (statement,) = connection.execute("select sql from sqlite_master where name = ?", (table,)).fetchone()
        indexes = connection.execute(
            "select sql from sqlite_master where type = 'index' and tbl_name = ? and sql is not null", (table,)
        ).fetchall()
        assert old in statement
        connection.execute(f"drop table {table}")
        connection.execute(statement.replace(old, new))
        for (index,) in indexes:
            connection.execute(index)
    lines = found(installed)
    assert len(lines) == 1, lines
    assert lines[0].startswith(expected), lines[0]
    assert lines[0].endswith(REMADE)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "create index other on outbox (transaction_id, position) where topic = 'orders'",
        "create index other on outbox (position, transaction_id)",
        "create index other on outbox (transaction_id desc, position)",
    ],
)
def test_an_index_that_does_not_serve_is_named(installed: str, index: str) -> None:
    run(installed, f"drop index outbox_transaction_position; {index}")
    assert found(installed) == [
        (
            '"outbox" has no index on ("transaction_id", "position"):'
            ' run `create index on "outbox" ("transaction_id", "position")`'
        )
    ]


def test_a_table_that_is_missing_and_a_view_in_the_place_are_named(installed: str) -> None:
    run(installed, "drop table relay_checkpoint; alter table inbox rename to t; create view inbox as select * from t")
    assert found(installed) == [
        'table "relay_checkpoint" is missing: run `outbox init`',
        '"inbox" is a view, not a table: rename it and run `outbox init`',
    ]


def test_a_schema_is_refused_because_sqlite_has_none(sqlite_url: str) -> None:
    with connected(parse_url(sqlite_url), create=True) as connection:
        for ask in (
            lambda: install(connection, Place("events")),
            lambda: differences(connection, Place("events"), SETS),
        ):
            with pytest.raises(ConfigurationError, match="SQLite has no schemas: leave 'events' out"):
                ask()


def test_a_file_that_is_not_there_is_made_by_install_alone(sqlite_url: str) -> None:
    with pytest.raises(Unreachable, match="is the path right, and was `outbox init` run"):
        found(sqlite_url)
    assert not Path(file_of(sqlite_url)).exists()


def test_a_file_that_is_no_database_is_refused(sqlite_url: str) -> None:
    Path(file_of(sqlite_url)).write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        found(sqlite_url)


READ_ONLY = """
import os, sys
from outbox.errors import ConfigurationError
from outbox.install import install
from outbox.process.database import connected
from outbox.process.urls import parse_url
from outbox.tables import Place
own, others = map(parse_url, sys.argv[1:])
with connected(own, create=True) as connection:
    install(connection, Place())  # loads all that is loaded late, while this process may still read it
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    with connected(others, create=True) as connection:
        install(connection, Place())
except ConfigurationError as error:
    print(error)
"""


def test_a_file_that_may_only_be_read_is_refused(installed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder, "app.db")
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("create table other (x)")
        file.chmod(0o444)
        said = subprocess.run(
            [sys.executable, "-c", READ_ONLY, installed, f"sqlite:///{file}"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert "attempt to write a readonly database" in said.stdout, said.stderr
    assert "name a database file that this process may write to" in said.stdout


def test_the_switch_to_wal_waits_for_a_writer_of_the_file(sqlite_url: str) -> None:
    # SQLite answers "database is locked" at once there, whatever the busy time-out.
    writer = sqlite3.connect(file_of(sqlite_url), isolation_level=None, check_same_thread=False)
    writer.execute("begin immediate")
    release = threading.Timer(0.2, writer.execute, ["rollback"])
    release.start()
    with connected(parse_url(sqlite_url)) as connection:
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
    release.join()
    writer.close()


def test_two_that_install_at_once_both_succeed(sqlite_url: str) -> None:
    made: list[list[str] | Exception] = []
    together = threading.Barrier(4)

    def one() -> None:
        try:
            together.wait()
            with connected(parse_url(sqlite_url), create=True) as connection:
                made.append(install(connection, HERE))
        except Exception as error:
            made.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(one) if isinstance(one, list) else -1 for one in made) == [0, 0, 0, 13], made
    assert found(sqlite_url) == []
