"""Alembic with an `env.py` and migrations that nobody edited: the real commands, warnings being errors."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from alembic_project import CONVENTION, Project
from databases import install, rows
from other_versions import installed
from sqlalchemy import create_engine

from outbox.check import differences
from outbox.tables import Place

THERE_AND_BACK = (
    ["revision", "--autogenerate", "-m", "ours"],
    ["upgrade", "head"],
    ["check"],
    ["downgrade", "base"],
    ["upgrade", "head"],
    ["check"],
)
PLACES: dict[str, dict[str, Any]] = {
    "plain": {},
    "prefix": {"prefix": "app_", "convention": CONVENTION},
    "schema": {"schema": "events", "prefix": "app_", "convention": CONVENTION, "sets": ("outbox", "inbox")},
    "default-schema": {"schema": "public"},
}
OPTIONS: dict[str, dict[str, object]] = {
    "as-it-comes": {},
    "no-types": {"include_schemas": True, "compare_type": False},
    "all": {"include_schemas": True, "render_as_batch": True, "compare_server_default": True, "compare_type": True},
}
POSTGRESQL_ALONE = {"schema", "default-schema"}
CASES = [
    (dialect, place, options)
    for dialect, place, options in product(("sqlite", "postgresql"), PLACES, OPTIONS)
    if (dialect == "postgresql" or place not in POSTGRESQL_ALONE)
    and (place != "schema" or OPTIONS[options].get("include_schemas"))  # what Alembic itself asks for
    and (place != "default-schema" or options == "as-it-comes")
    and (place != "prefix" or options == "all")
]
OTHERS = [
    ("sqlalchemy==2.0.58",),
    ("sqlalchemy==2.0.36", "alembic==1.14.0"),
    ("sqlalchemy==2.0.58", "alembic==1.17.2"),
    ("alembic==1.18.0",),
    ("alembic==1.19.1",),
]


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of the case's dialect, with the schema `events` on PostgreSQL."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    if request.param == "postgresql":
        rows(url, "create schema events")
        return url.replace("postgresql://", "postgresql+psycopg://")
    return url


def _found(project: Project) -> list[str]:
    """Return what `outbox check` says about the project's database."""
    engine = create_engine(project.url)
    with engine.connect() as connection:
        found = differences(connection, Place(project.schema, project.prefix), project.sets)
    engine.dispose()
    return found


def _plain(url: str) -> str:
    """Return the URL as a plain driver takes it."""
    return url.replace("postgresql+psycopg:", "postgresql:")


def _statements(project: Project) -> str:
    """Return what the newest migration does, in `upgrade` and `downgrade`."""
    return project.migrations()[-1].partition("def upgrade")[2]


@pytest.mark.parametrize(("url", "place", "options"), CASES, indirect=["url"])
def test_the_tables_come_and_go_by_unedited_migrations(url: str, place: str, options: str, tmp_path: Path):
    project = Project(tmp_path / "app", url, options=OPTIONS[options], **PLACES[place]).make()
    project.run(*THERE_AND_BACK)
    assert _found(project) == []


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("requirements", OTHERS, ids=" ".join)
def test_other_versions_of_alembic_and_sqlalchemy_do_it_too(url: str, requirements: tuple[str, ...], tmp_path: Path):
    place = PLACES["schema" if url.startswith("postgresql") else "prefix"]
    project = Project(tmp_path / "app", url, options=OPTIONS["all"], path=installed(*requirements), **place).make()
    project.run(*THERE_AND_BACK)
    assert _found(project) == []
    versions = project.python(
        "-c",
        "import alembic, sqlalchemy; print(f'alembic=={alembic.__version__} sqlalchemy=={sqlalchemy.__version__}')",
    )
    assert all(one in versions.stdout for one in requirements)


USERS_ALONE: dict[str, Any] = {"sets": ()}


def test_the_check_against_foreign_transaction_ids_stays_not_valid_and_the_identity_always(
    postgresql_url: str, tmp_path: Path
):
    """As a valid check pg_dump would restore it before the data, and refuse every row of the old cluster."""
    project = Project(tmp_path / "app", postgresql_url.replace("postgresql:", "postgresql+psycopg:")).make()
    project.run(*THERE_AND_BACK)
    validity = "select convalidated from pg_constraint where conname = 'outbox_own_transaction'"
    assert rows(postgresql_url, validity) == [(False,)]
    assert rows(
        postgresql_url, "select attidentity from pg_attribute where attrelid = 'outbox'::regclass and attnum = 1"
    ) == [("a",)]


def test_positions_are_never_used_again_in_an_sqlite_file_made_by_migrations(sqlite_url: str, tmp_path: Path):
    project = Project(tmp_path / "app", sqlite_url).make()
    project.run(*THERE_AND_BACK)
    insert = "insert into outbox (topic, payload) values ('orders', 'x') returning position"
    first = rows(sqlite_url, insert)
    rows(sqlite_url, "delete from outbox")
    assert (first, rows(sqlite_url, insert)) == ([(1,)], [(2,)])


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_a_migration_holds_nothing_of_the_other_dialect_and_all_its_imports(url: str, tmp_path: Path):
    project = Project(tmp_path / "app", url).make()
    project.run(*THERE_AND_BACK[:1])
    text = project.migrations()[0]
    assert "import outbox.tables\n" in text
    assert ("glob" in text, "pg_current_xact_id" in text) == ((True, False) if "sqlite" in url else (False, True))


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_tables_that_outbox_init_made_are_left_alone_and_the_users_own_are_not(url: str, tmp_path: Path):
    """Autogenerate drops what is not in the metadata, and messages would go with it."""
    project = Project(tmp_path / "app", url, **USERS_ALONE).make()
    install(url)
    rows(_plain(url), "create table app_inbox (letter text)")  # ends like ours, and is not
    project.run(*THERE_AND_BACK[:1])
    text = _statements(project)
    assert "create_table('order'" in text
    assert "drop_table('app_inbox'" in text
    assert "outbox" not in text
    project.run(*THERE_AND_BACK[1:])
    assert _found(Project(tmp_path, url)) == []


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_a_project_that_never_imports_us_keeps_our_tables_too(url: str, tmp_path: Path):
    """By the entry point: after `pip install` of another pyproject.toml, run `make .venv/installed`."""
    project = Project(tmp_path / "app", url, **USERS_ALONE).make()
    install(url)
    project.models((project.folder / "models.py").read_text().replace("from inbox", "#").replace("from outbox", "#"))
    project.run(*THERE_AND_BACK[:2])
    assert "outbox" not in _statements(project)


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_sets_are_added_one_by_one(url: str, tmp_path: Path):
    project = Project(tmp_path / "app", url, sets=("outbox",), options=OPTIONS["all"]).make()
    project.run(*THERE_AND_BACK)
    whole = Project(tmp_path / "whole", url, options=OPTIONS["all"]).make()
    project.models((whole.folder / "models.py").read_text())
    project.run(*THERE_AND_BACK[:3], ["downgrade", "-1"], *THERE_AND_BACK[4:])
    assert "create_table('outbox" not in _statements(project)
    assert _found(whole) == []


TWO = """
from models import Base
from others import OtherBase

target_metadata = [Base.metadata, OtherBase.metadata]
"""
OTHERS_BASE = """
from sqlalchemy.orm import DeclarativeBase
from inbox import Inbox
from outbox import Outbox


class OtherBase(DeclarativeBase): ...


"""


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("outbox",), "Inbox('billing', metadata=OtherBase.metadata)"),
        (("outbox", "inbox"), "Outbox(metadata=OtherBase.metadata)"),
        (("outbox",), "Outbox(metadata=OtherBase.metadata, prefix='other_')"),
    ],
    ids=["a set each", "the same set", "the same set elsewhere"],
)
def test_two_metadata_in_one_environment_may_both_have_our_tables(
    url: str, first: tuple[str, ...], second: str, tmp_path: Path
):
    project = Project(tmp_path / "app", url, sets=first).make()
    (project.folder / "others.py").write_text(OTHERS_BASE + second)
    project.target(TWO)
    project.run(*THERE_AND_BACK)
    assert _found(Project(tmp_path, url, sets=("outbox",))) == []
    if "prefix" in second:
        assert _found(Project(tmp_path, url, sets=("outbox",), prefix="other_")) == []


def test_a_table_of_the_users_own_on_two_metadata_is_refused_as_ever(sqlite_url: str, tmp_path: Path):
    project = Project(tmp_path / "app", sqlite_url).make()
    (project.folder / "others.py").write_text(
        OTHERS_BASE
        + "from sqlalchemy import Column, Integer, Table\nTable('order', OtherBase.metadata, Column('id', Integer))"
    )
    project.target(TWO)
    assert "Duplicate table keys" in project.tried(*THERE_AND_BACK[:1]).stderr


def test_the_users_own_render_item_is_asked_first(sqlite_url: str, tmp_path: Path):
    project = Project(tmp_path / "app", sqlite_url).make()
    project.target(
        "from models import Base\n\ntarget_metadata = Base.metadata\n\n\n"
        "def render(kind, item, context):\n"
        "    return 'sa.BigInteger()' if kind == 'type' and type(item).__name__ == 'Text' else False\n"
    )
    env = project.folder / "migrations" / "env.py"
    env.write_text(
        env.read_text().replace(
            "target_metadata=target_metadata", "target_metadata=target_metadata, render_item=render"
        )
    )
    project.run(*THERE_AND_BACK[:1])
    assert "sa.Text()" not in _statements(project)
    assert "outbox.tables.XID8()" in _statements(project)


def test_the_commands_of_the_console_one_by_one(postgresql_url: str, tmp_path: Path):
    project = Project(tmp_path / "app", postgresql_url.replace("postgresql:", "postgresql+psycopg:")).make()
    for command in THERE_AND_BACK:
        done = project.python("-m", "alembic", *command)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_statements_for_a_dba_hold_the_check_too(postgresql_url: str, tmp_path: Path):
    """`alembic upgrade --sql` connects to nothing."""
    project = Project(tmp_path / "app", postgresql_url.replace("postgresql:", "postgresql+psycopg:")).make()
    project.run(*THERE_AND_BACK[:1])
    said = project.run(["upgrade", "head", "--sql"])
    assert "ALTER TABLE outbox ADD CONSTRAINT outbox_own_transaction CHECK" in said
    assert "NOT VALID;" in said


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_an_asynchronous_environment(url: str, tmp_path: Path):
    driver = {"sqlite": "sqlite+aiosqlite", "postgresql+psycopg": "postgresql+asyncpg"}
    asynchronous = driver[url.partition(":")[0]] + ":" + url.partition(":")[2]
    project = Project(tmp_path / "app", asynchronous, template="async").make()
    project.run(*THERE_AND_BACK)
    assert _found(Project(tmp_path, url)) == []


LATE = """
import sys
import models
assert "alembic" not in sys.modules
from alembic import command
from alembic.config import Config
command.check(Config("alembic.ini"))
"""


@pytest.mark.parametrize("requirements", [(), ("sqlalchemy==2.0.58", "alembic==1.17.2")], ids=" ".join)
def test_an_alembic_that_is_loaded_after_us_knows_of_us(
    postgresql_url: str, requirements: tuple[str, ...], tmp_path: Path
):
    """As in a test of the application that runs `alembic check` from Python."""
    url = postgresql_url.replace("postgresql:", "postgresql+psycopg:")
    project = Project(tmp_path / "app", url, sets=("outbox",), path=installed(*requirements)).make()
    install(postgresql_url)
    project.models(
        (project.folder / "models.py").read_text().partition("class Order")[0] + "Outbox(metadata=Base.metadata)"
    )
    done = project.python("-c", LATE)
    assert "No new upgrade operations detected" in done.stdout, done.stdout + done.stderr
