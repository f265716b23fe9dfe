"""What stands in a PostgreSQL database in the place of our tables, read from the system catalog."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import URL, Column, Connection, Row, Table, text

from outbox.inspect.live import LiveColumn, LiveTable, default_sql
from outbox.tables import Place
from outbox.tables.outbox import OWN_TRANSACTION, TOPIC_ON_POSTGRESQL

MINIMUM = 14
HAS_COMMENTS = True
_DIALECT = URL.create("postgresql").get_dialect()()
_IDENTITY = {"a": "always", "d": "by default"}
_TYPES = {"float": "double precision"}
_SAME_DEFAULT = {"'1'": "1", "CURRENT_TIMESTAMP": "now()", "transaction_timestamp()": "now()"}
_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "p": "a partitioned table",
    "S": "a sequence",
}
# As the server writes back TOPIC_ON_POSTGRESQL, without the spaces, parentheses and casts.
_TOPIC_WRITTEN_BACK = "topic~'^[A-Za-z0-9._-]{1,249}$'ANDtopic<>ALLARRAY['.','..']"

_SERVER = text("""
    select pg_is_in_recovery() as standby,
           current_setting('transaction_read_only') = 'on' as read_only,
           current_setting('server_version_num')::int / 10000 as version
""")
# to_regclass finds what the bare name means on this session's search_path, as our statements will.
_TABLES = text("""
    select wanted.place, c.oid, c.relkind::text as kind, c.relpersistence::text as persistence,
           row_security_active(c.oid) as hidden, current_user::text as role,
           obj_description(c.oid, 'pg_class') as comment
      from unnest(cast(:names as text[])) as wanted(place)
      join pg_class c on c.oid = to_regclass(wanted.place)
""")
_COLUMNS = text("""
    select a.attrelid as oid, a.attname as name,
           format_type(a.atttypid, a.atttypmod) as type, not a.attnotnull as nullable,
           pg_get_expr(d.adbin, d.adrelid) as "default", a.attidentity::text as identity,
           (select s.seqcache from pg_depend p join pg_sequence s on s.seqrelid = p.objid
             where p.classid = 'pg_class'::regclass and p.refclassid = 'pg_class'::regclass
               and p.refobjid = a.attrelid and p.refobjsubid = a.attnum and p.deptype = 'i') as cache
      from pg_attribute a
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where a.attrelid = any(cast(:oids as oid[])) and a.attnum > 0 and not a.attisdropped
     order by a.attrelid, a.attnum
""")
# Only what serves every row: valid, not partial, over columns, in ascending order; of unique keys those that are not
# deferrable, because `on conflict` cannot use the others.
_INDEXES = text("""
    select i.indrelid as oid, i.indisprimary as is_primary, i.indisunique as is_unique,
           array(select a.attname::text
                   from generate_series(0, i.indnkeyatts - 1) n
                   join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[n]
                  order by n) as columns
      from pg_index i
      join pg_class c on c.oid = i.indexrelid
      join pg_am m on m.oid = c.relam
     where i.indrelid = any(cast(:oids as oid[])) and i.indisvalid and i.indpred is null and i.indexprs is null
       and (i.indimmediate or not i.indisunique) and m.amname = 'btree'
       and not exists (select from generate_series(0, i.indnkeyatts - 1) n where i.indoption[n] <> 0)
""")
_CHECKS = text("""
    select conrelid as oid, pg_get_constraintdef(oid) as definition
      from pg_constraint where conrelid = any(cast(:oids as oid[])) and contype = 'c'
""")


def server_faults(connection: Connection) -> list[str]:
    """Return what makes this server unfit for us, each with what to do."""
    server = connection.execute(_SERVER).one()
    if server.standby:
        return ["this server is a standby: connect to the primary"]
    faults = []
    if server.read_only:
        faults.append(
            "this database is read-only for this role (default_transaction_read_only): connect to a writable one"
        )
    if server.version < MINIMUM:
        faults.append(f"this is PostgreSQL {server.version}: {MINIMUM} or newer is needed")
    return faults


def read_tables(connection: Connection, place: Place, names: Sequence[str]) -> Mapping[str, LiveTable]:
    """Return those of the tables (names without prefix) that exist."""
    by_place = {place.sql(name): name for name in names}
    found = {row.oid: row for row in connection.execute(_TABLES, {"names": list(by_place)})}
    columns, indexes, checks = (_by_table(connection, query, list(found)) for query in (_COLUMNS, _INDEXES, _CHECKS))
    return {
        by_place[row.place]: LiveTable(
            columns={one.name: _column(one) for one in columns.get(oid, []) if row.kind == "r"},
            primary_key=next((tuple(one.columns) for one in indexes.get(oid, []) if one.is_primary), ()),
            uniques=frozenset(tuple(one.columns) for one in indexes.get(oid, []) if one.is_unique),
            indexes=frozenset(tuple(one.columns) for one in indexes.get(oid, [])),
            checks=frozenset(plain_check(one.definition) for one in checks.get(oid, [])),
            comment=row.comment,
            faults=_faults(row),
        )
        for oid, row in found.items()
    }


def has_schema(connection: Connection, schema: str) -> bool:
    """Return whether there is a schema of this name."""
    return connection.scalar(text("select to_regnamespace(quote_ident(:name)) is not null"), {"name": schema}) is True


def begin_alone(connection: Connection, place: Place) -> None:
    """Begin a transaction that waits for every other that was begun so, in this place."""
    # `create table if not exists` of two sessions at once fails in one of them: the catalog's own unique index.
    lock = text("select pg_advisory_xact_lock(hashtextextended(:name, 0))")
    connection.execute(lock, {"name": f"outbox-relay-inbox init {place.sql('')}"})


def column_type(column: Column[object]) -> str:
    """Return the type of a column of ours, as `format_type` writes it."""
    written = str(column.type.compile(dialect=_DIALECT)).lower()
    return _TYPES.get(written, written)


def column_default(column: Column[object]) -> str | None:
    """Return the default of a column of ours, as the server writes it back."""
    written = default_sql(column, _DIALECT)
    return None if written is None else _plain_default(written)


def expected_checks(table: Table, name: str) -> Mapping[str, str]:
    """Return what must hold for the rows of a table of ours: plain check -> the statement that adds it."""
    add = f"alter table {_DIALECT.identifier_preparer.format_table(table)} add"
    if name == "outbox":
        return {
            plain_check(OWN_TRANSACTION): f"{add} check ({OWN_TRANSACTION}) not valid",
            _TOPIC_WRITTEN_BACK: f"{add} check ({TOPIC_ON_POSTGRESQL})",
        }
    return {plain_check("single = 1"): f"{add} check (single = 1)"} if "single" in table.columns else {}


def mend(statement: str) -> str:
    """Return words that tell how to put a difference right."""
    return f"run `{statement}`"


def plain_check(definition: str) -> str:
    """Return a check's condition without the spaces, parentheses and casts that the server adds when it writes it back.

    NOT VALID goes too: such a check holds for every new row. NOT ENFORCED stays, so that it compares unequal.
    """
    condition = definition.removeprefix("CHECK ").removesuffix(" NOT VALID")
    return re.sub(r"::text(?:\[\])?|[\s()]", "", condition)


def _by_table(connection: Connection, query: Any, oids: list[int]) -> dict[int, list[Row[Any]]]:
    found: dict[int, list[Row[Any]]] = {}
    for row in connection.execute(query, {"oids": oids}) if oids else ():
        found.setdefault(row.oid, []).append(row)
    return found


def _column(row: Row[Any]) -> LiveColumn:
    default = None if row.default is None else _plain_default(row.default)
    return LiveColumn(row.type, row.nullable, default, _IDENTITY.get(row.identity), row.cache)


def _plain_default(written: str) -> str:
    plain = re.sub(r"::[a-z0-9 ]+$", "", written)
    return _SAME_DEFAULT.get(plain, plain)


def _faults(row: Row[Any]) -> list[str]:
    if row.kind != "r":
        return [f"{row.place} is {_KINDS.get(row.kind, 'no table')}, not a table: rename it and run `outbox init`"]
    faults = []
    if row.persistence != "p":
        faults.append(
            f"{row.place} is unlogged, a crash would empty it: run `alter table {row.place} set logged`"
            if row.persistence == "u"
            else f"{row.place} is a temporary table: drop it and run `outbox init`"
        )
    if row.hidden:
        faults.append(
            f"row level security hides rows of {row.place} from {row.role}: use the table's owner or a role with"
            f" BYPASSRLS, or run `alter table {row.place} disable row level security`"
        )
    return faults
