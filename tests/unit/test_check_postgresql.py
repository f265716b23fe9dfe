"""`differences` names each thing that is wrong with our tables on PostgreSQL, and says what to do."""

import re
import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, MetaData, create_engine

from outbox.check import SETS, differences, present, refuse_differences
from outbox.errors import ConfigurationError
from outbox.install import ddl, install
from outbox.process.database import connected
from outbox.process.urls import parse_url, with_driver
from outbox.tables import Place, inbox_tables, log_tables, outbox_tables
from tests.conftest import drop_database, make_database

HERE = Place()


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def found(url: str, place: Place = HERE, sets: tuple[str, ...] = SETS) -> list[str]:
    with connected(parse_url(url)) as connection:
        return differences(connection, place, sets)


@pytest.fixture
def installed(postgresql_url: str) -> str:
    with connected(parse_url(postgresql_url)) as connection:
        install(connection, HERE)
    return postgresql_url


@pytest.fixture(scope="module")
def shared(postgresql_server_url: str) -> Iterator[str]:
    """A database with our tables for all tests that commit nothing."""
    url = make_database(postgresql_server_url)
    with connected(parse_url(url)) as connection:
        install(connection, HERE)
    yield url
    drop_database(url)


@pytest.fixture
def open_tables(shared: str) -> Iterator[Connection]:
    """A connection in a transaction that is rolled back, so that a test can break what it likes."""
    with connected(parse_url(shared)) as connection:
        yield connection


@pytest.fixture
def role(installed: str) -> Iterator[str]:
    """A role that owns nothing, as the URL that it connects by."""
    name = "stranger_" + installed.rsplit("_", 1)[1]
    run(
        installed,
        f"create role {name} login",
        f"grant all on all tables in schema public to {name}",
    )
    yield installed.replace("postgres@", f"{name}@")
    run(installed, f"drop owned by {name} cascade", f"drop role {name}")


@pytest.mark.parametrize("place", [HERE, Place("events"), Place(None, "app_"), Place('odd "schema', 'odd "prefix_')])
def test_what_install_makes_has_no_differences(postgresql_url: str, place: Place) -> None:
    if place.schema:
        run(postgresql_url, f"create schema {sql.Identifier(place.schema).as_string()}")
    with connected(parse_url(postgresql_url)) as connection:
        assert present(connection, place) == set()
        assert len(install(connection, place)) == 13
        assert differences(connection, place, SETS) == []
        assert present(connection, place) == set(SETS)
        assert install(connection, place) == []


def test_what_the_printed_sql_makes_has_no_differences(postgresql_url: str) -> None:
    run(postgresql_url, ddl("postgresql", HERE))
    assert found(postgresql_url) == []


def test_what_create_all_of_an_application_makes_has_no_differences(postgresql_url: str) -> None:
    convention = {
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(column_0_name)s",
    }
    metadata = MetaData(naming_convention=convention)
    for register in (outbox_tables, inbox_tables, log_tables):
        register(metadata)
    engine = create_engine(with_driver(parse_url(postgresql_url)))
    metadata.create_all(engine)
    engine.dispose()
    assert found(postgresql_url) == []


def test_a_table_named_like_ours_in_another_schema_of_the_search_path_is_the_one_that_counts(installed: str) -> None:
    run(installed, "create schema before", "create table before.inbox (id int)")
    run(installed, f"alter database {installed.rsplit('/', 1)[1]} set search_path = before, public")
    assert any(line.startswith('"inbox".source is missing') for line in found(installed))


BROKEN = {
    "a column is missing": ("alter table outbox drop column source", '"outbox".source is missing: run `alter table'),
    "a type differs": (
        "alter table outbox alter column key type varchar(10)",
        '"outbox".key has type character varying(10), not text: run `alter table "outbox" alter column',
    ),
    "a column may be null": (
        "alter table outbox alter column id drop not null",
        '"outbox".id must not be null: run `alter table "outbox" alter column "id" set not null`',
    ),
    "a column may not be null": (
        "alter table outbox alter column key set not null",
        '"outbox".key may be null: run `alter table "outbox" alter column "key" drop not null`',
    ),
    "a default is missing": (
        "alter table outbox alter column created_at drop default",
        '"outbox".created_at has default none, not now(): run `alter table "outbox" alter column',
    ),
    "a default differs": (
        "alter table outbox alter column transaction_id set default '5'",
        "\"outbox\".transaction_id has default '5', not pg_current_xact_id()",
    ),
    "a default is too many": (
        "alter table outbox alter column key set default 'x'",
        '"outbox".key has default \'x\', not none: run `alter table "outbox" alter column "key" drop default`',
    ),
    "positions may be chosen": (
        "alter table outbox alter column position set generated by default",
        (
            '"outbox".position is not generated always as identity: run'
            ' `alter table "outbox" alter column "position" set generated always`'
        ),
    ),
    "positions are not drawn": (
        "alter table outbox alter column position drop identity",
        (
            '"outbox".position is not generated always as identity: run'
            ' `alter table "outbox" alter column "position" add generated always as identity`'
        ),
    ),
    "positions are drawn in advance": (
        "alter table outbox alter column position set cache 20",
        (
            '"outbox".position takes 20 numbers in advance (CACHE), which puts messages out of order: run'
            ' `alter table "outbox" alter column "position" set cache 1`'
        ),
    ),
    "foreign transaction ids are let in": (
        "alter table outbox drop constraint outbox_own_transaction",
        '"outbox" lacks check (transaction_id = pg_current_xact_id()) not valid: run `alter table outbox add check',
    ),
    "transaction ids are checked another way": (
        (
            "alter table outbox drop constraint outbox_own_transaction;"
            "alter table outbox add check (transaction_id <= pg_current_xact_id())"
        ),
        '"outbox" lacks check (transaction_id = pg_current_xact_id())',
    ),
    "any topic is let in": ("alter table outbox drop constraint outbox_topic", '"outbox" lacks check (topic ~ '),
    "the index is missing": (
        "drop index outbox_transaction_position",
        '"outbox" has no index on ("transaction_id", "position"): run `create index on',
    ),
    "the index leaves rows out": (
        (
            "drop index outbox_transaction_position;"
            "create index on outbox (transaction_id, position) where topic = 'orders'"
        ),
        '"outbox" has no index on ("transaction_id", "position")',
    ),
    "the index begins otherwise": (
        "drop index outbox_transaction_position; create index on outbox (position, transaction_id)",
        '"outbox" has no index on ("transaction_id", "position")',
    ),
    "the index falls": (
        "drop index outbox_transaction_position; create index on outbox (transaction_id desc, position)",
        '"outbox" has no index on ("transaction_id", "position")',
    ),
    "the primary key is missing": (
        "alter table inbox drop constraint inbox_pkey",
        '"inbox" has not the primary key ("consumer_group", "source", "message_id"): run',
    ),
    "a unique key is missing": (
        "alter table log_topic drop constraint log_topic_name_key",
        '"log_topic" has no unique key ("name"): run `alter table "log_topic" add unique ("name")`',
    ),
    "a unique key is deferred": (
        (
            "alter table log_topic drop constraint log_topic_name_key;"
            "alter table log_topic add unique (name) deferrable initially deferred"
        ),
        '"log_topic" has no unique key ("name")',
    ),
    "a crash would empty a table": (
        "alter table relay_checkpoint set unlogged",
        '"relay_checkpoint" is unlogged, a crash would empty it: run `alter table "relay_checkpoint" set logged`',
    ),
    "a table is missing": ("drop table relay_checkpoint", 'table "relay_checkpoint" is missing: run `outbox init`'),
    "a view stands in the place": (
        "alter table inbox rename to inbox_table; create view inbox as select * from inbox_table",
        '"inbox" is a view, not a table: rename it and run `outbox init`',
    ),
    "the version is older": (
        "comment on table outbox is 'outbox-relay-inbox: outbox, version 0'",
        '"outbox" is of version 0, this program knows version 1: move its data as the changelog says',
    ),
    "the version is newer": (
        "comment on table log_record is 'outbox-relay-inbox: log, version 2'",
        '"log_record" is of version 2, this program knows version 1: install a newer outbox-relay-inbox',
    ),
    "the version is gone": (
        "comment on table outbox is null",
        '"outbox" has no comment that names its version: if it was made by this one, run `comment on table "outbox" is',
    ),
    "a foreign column refuses our rows": (
        "alter table outbox add column tenant text not null",
        '"outbox".tenant is not ours, and refuses our rows: run',
    ),
    "two rows may be the installation": (
        "alter table outbox_installation drop constraint outbox_installation_single",
        '"outbox_installation" lacks check (single = 1)',
    ),
}


WITHOUT_STATEMENT = {
    "a table is missing",
    "a view stands in the place",
    "the version is older",
    "the version is newer",
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named_with_the_statement_that_mends_it(open_tables: Connection, what: str) -> None:
    statement, expected = BROKEN[what]
    open_tables.exec_driver_sql(statement)
    lines = differences(open_tables, HERE, SETS)
    assert len(lines) == 1, lines
    assert lines[0].startswith(expected), lines[0]
    mending = re.search(r"run `((?!outbox init).*)`$", lines[0])
    assert (mending is None) == (what in WITHOUT_STATEMENT)
    if mending is not None:
        open_tables.exec_driver_sql(mending[1])
        assert differences(open_tables, HERE, SETS) == []


@pytest.mark.parametrize(
    "harmless",
    [
        "alter table outbox rename constraint outbox_own_transaction to renamed",
        "alter table outbox validate constraint outbox_own_transaction",
        "alter table outbox rename constraint outbox_topic to renamed_too",
        "alter index outbox_transaction_position rename to renamed_index",
        "alter table outbox add column tenant text",
        "alter table outbox add column tenant text not null default 'x'",
        "alter table outbox alter column created_at set default current_timestamp",
        "drop index outbox_transaction_position; create index on outbox (transaction_id, position, topic)",
        "create index on outbox (topic)",
    ],
)
def test_what_does_no_harm_is_no_difference(open_tables: Connection, harmless: str) -> None:
    open_tables.exec_driver_sql(harmless)
    assert differences(open_tables, HERE, SETS) == []


def test_a_check_that_is_not_enforced_is_none(installed: str) -> None:
    with psycopg.connect(installed) as connection:
        if connection.info.server_version < 180000:
            pytest.skip("NOT ENFORCED came with PostgreSQL 18")
    run(installed, "alter table outbox drop constraint outbox_own_transaction")
    run(installed, "alter table outbox add check (transaction_id = pg_current_xact_id()) not enforced")
    assert any("lacks check (transaction_id" in line for line in found(installed))


def test_row_level_security_that_hides_rows_is_named(installed: str, role: str) -> None:
    assert found(role) == []
    run(installed, "alter table outbox enable row level security")
    assert found(installed) == []
    (line,) = found(role)
    assert line.startswith('row level security hides rows of "outbox" from stranger_')
    assert "BYPASSRLS" in line


def test_a_database_that_this_role_can_only_read_is_named(installed: str, role: str) -> None:
    name = role.split("//", 1)[1].split("@", 1)[0]
    run(installed, f"alter role {name} set default_transaction_read_only = on")
    assert any("read-only for this role" in line for line in found(role))
    with pytest.raises(ConfigurationError, match="read-only"), connected(parse_url(role)) as connection:
        install(connection, HERE)


def test_a_missing_schema_is_named_with_the_statement_that_makes_it(postgresql_url: str) -> None:
    missing = pytest.raises(ConfigurationError, match='run `create schema "events"` first')
    with connected(parse_url(postgresql_url)) as connection, missing:
        install(connection, Place("events"))


def test_a_role_that_may_not_create_is_told_so(postgresql_url: str, installed: str, role: str) -> None:
    run(installed, "revoke create on schema public from public", "drop table inbox")
    with pytest.raises(ConfigurationError, match="permission denied"), connected(parse_url(role)) as connection:
        install(connection, HERE)


def test_install_leaves_alone_what_is_there(installed: str) -> None:
    run(installed, "alter table outbox alter column key type varchar(10)", "drop table inbox")
    with connected(parse_url(installed)) as connection:
        assert install(connection, HERE) == ["inbox"]
    assert [line.split(" has ")[0] for line in found(installed)] == ['"outbox".key']


def test_the_installation_keeps_its_id(installed: str) -> None:
    def ids() -> list[tuple[object, ...]]:
        with psycopg.connect(installed) as connection:
            statement = b"select id from outbox_installation union all select id from log_identity"
            return connection.execute(statement).fetchall()

    first = ids()
    assert len(set(first)) == 2
    with connected(parse_url(installed)) as connection:
        install(connection, HERE)
    assert ids() == first


def test_a_set_that_is_absent_is_one_line(installed: str) -> None:
    run(installed, "drop table inbox, inbox_offset")
    with connected(parse_url(installed)) as connection:
        assert present(connection, HERE) == {"outbox", "log"}
        assert differences(connection, HERE, ["outbox", "log"]) == []
        with pytest.raises(ConfigurationError, match=r"^the inbox tables are not there: run `outbox init`$"):
            refuse_differences(connection, HERE, ["inbox"])


def test_two_that_install_at_once_both_succeed(postgresql_url: str) -> None:
    made: list[list[str] | Exception] = []
    together = threading.Barrier(4)

    def one() -> None:
        try:
            with connected(parse_url(postgresql_url)) as connection:
                together.wait()
                made.append(install(connection, HERE))
        except Exception as error:
            made.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(one) if isinstance(one, list) else -1 for one in made) == [0, 0, 0, 13], made
    assert found(postgresql_url) == []
