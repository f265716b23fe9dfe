"""Puts right what Alembic finds when it compares our tables with a live database."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from warnings import filterwarnings

from alembic.operations import ops
from sqlalchemy import CheckConstraint, Column, Identity, MetaData, Table
from sqlalchemy.exc import SAWarning
from sqlalchemy.schema import AddConstraint, DropConstraint, SchemaItem
from sqlalchemy.util import to_list

from outbox.check import tables_of
from outbox.migrations.rendering import Rendering
from outbox.tables import Place
from outbox.tables.names import ONLY_ON, is_ours

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext


class AddNotValid(ops.ExecuteSQLOp):
    """Adds a check as NOT VALID, by a statement: inside CREATE TABLE PostgreSQL takes it for valid."""

    def __init__(self, add: str, drop: str) -> None:
        super().__init__(add)
        self._drop = drop

    def reverse(self) -> "AddNotValid":
        """Return the operation that drops the check."""
        return AddNotValid(self._drop, str(self.sqltext))


def prepare(context: "AutogenContext") -> None:
    """Make ready to compare: our types render, and our tables may be on several metadata."""
    users = context.opts.get("render_item")
    if not isinstance(users, Rendering):
        context.opts["render_item"] = Rendering(users)
    # SQLAlchemy (2.0 and 2.1), and Alembic 1.19 likewise, stumble over the former's own answer when they reflect a
    # check that is NOT VALID, as one of ours is.
    filterwarnings("ignore", "Can't validate argument '(dialect_options|not_valid)'", SAWarning)
    _share_tables(context)


def correct(context: "AutogenContext", operations: ops.UpgradeOps) -> None:
    """Put right the operations that Alembic came to, in place."""
    kept = {_place(one) for one in operations.ops if isinstance(one, ops.DropTableOp) and _is_ours(context, one)}
    operations.ops[:] = [
        corrected
        for one in operations.ops
        if not (isinstance(one, ops.DropTableOp | ops.ModifyTableOps) and _place(one) in kept)
        for corrected in _corrected(context, one)
    ]


def _share_tables(context: "AutogenContext") -> None:
    """Let the same tables of ours on a second metadata count once, where Alembic would refuse them as duplicates."""
    several: Sequence[MetaData] = to_list(context.metadata)
    tables: dict[str, Table] = {}
    for metadata in several:
        for key, table in metadata.tables.items():
            first = tables.setdefault(key, table)
            if first is not table and not (is_ours(first.comment) and is_ours(table.comment)):
                return  # the user's own duplicate: Alembic has words for it
    ordered = [table for metadata in several for table in metadata.sorted_tables if tables[table.key] is table]
    vars(context).update(table_key_to_table=tables, sorted_tables=ordered)


def _corrected(context: "AutogenContext", one: ops.MigrateOperation) -> Iterator[ops.MigrateOperation]:
    if isinstance(one, ops.CreateTableOp) and is_ours(one.comment):
        yield from _created(context, one)
    elif isinstance(one, ops.ModifyTableOps) and _place(one) in _places_of_ours(context):
        foreign = _foreign_checks(context)
        one.ops[:] = [inner for inner in one.ops if not _is_for_nothing(context, inner, foreign)]
        if one.ops:
            yield one
    else:
        yield one


def _is_for_nothing(context: "AutogenContext", one: ops.MigrateOperation, foreign: set[object]) -> bool:
    """Return whether an operation would change nothing, and would be found again the next time."""
    if isinstance(one, ops.CreateCheckConstraintOp):  # the plugin `checkconstraint_byname`, on by default in 1.19
        return one.constraint_name in foreign
    if _dialect(context) != "sqlite" or not isinstance(one, ops.AlterColumnOp):
        return False
    if isinstance(one.modify_server_default, Identity):  # SQLite has none to be reflected
        one.modify_server_default = False
    return not one.has_changes()


def _foreign_checks(context: "AutogenContext") -> set[object]:
    """Return the names of our checks that no table has on this dialect."""
    checks: dict[bool, set[object]] = {True: set(), False: set()}
    for table in _tables_of_ours(context):
        for check in (one for one in table.constraints if isinstance(one, CheckConstraint)):
            checks[check.info.get(ONLY_ON, _dialect(context)) == _dialect(context)].add(check.name)
    return checks[False] - checks[True]


def _tables_of_ours(context: "AutogenContext") -> list[Table]:
    return [table for table in context.sorted_tables if is_ours(table.comment)]


def _places_of_ours(context: "AutogenContext") -> set[tuple[str | None, str]]:
    """Return schema and name of our tables as operations have them: None for the database's default schema."""
    default = context.dialect.default_schema_name
    return {(None if table.schema == default else table.schema, table.name) for table in _tables_of_ours(context)}


def _created(context: "AutogenContext", create: ops.CreateTableOp) -> Iterator[ops.MigrateOperation]:
    """Yield the table with the checks of this dialect alone, and a statement for each that is NOT VALID."""
    later: list[CheckConstraint] = []
    columns: list[SchemaItem] = []
    for item in [*create.columns, *_checks_of_columns(create)]:
        if item.info.get(ONLY_ON, _dialect(context)) != _dialect(context):
            continue
        if isinstance(item, CheckConstraint) and item.dialect_kwargs.get("postgresql_not_valid"):
            later.append(item)
        else:
            columns.append(item)
    create.columns = columns
    yield create
    for check in later:
        add, drop = (str(ddl(check).compile(dialect=context.dialect)) for ddl in (AddConstraint, DropConstraint))
        yield AddNotValid(add, drop)


def _checks_of_columns(create: ops.CreateTableOp) -> Iterator[CheckConstraint]:
    """Yield the checks that stand at a column, for the table: at the column Alembic leaves them out."""
    for column in (item for item in create.columns if isinstance(item, Column)):
        for check in (one for one in column.constraints if isinstance(one, CheckConstraint)):
            yield CheckConstraint(check.sqltext, name=check.name)


def _is_ours(context: "AutogenContext", drop: ops.DropTableOp) -> bool:
    """Return whether a live table that is not in the metadata is one of ours, as `outbox init` makes them."""
    if context.dialect.supports_comments:
        return is_ours(drop.comment)
    live = {column.name for column in drop.to_table().columns}
    return any(
        drop.table_name.endswith(ours.name) and live >= {column.name for column in ours.columns}
        for ours in tables_of(Place()).sorted_tables
    )


def _place(one: ops.DropTableOp | ops.ModifyTableOps) -> tuple[str | None, str]:
    return one.schema, one.table_name


def _dialect(context: "AutogenContext") -> str:
    return context.dialect.name
