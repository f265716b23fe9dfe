"""What an inbox looks at before it handles anything: that tables and server are as it needs them."""

from pathlib import Path

import pytest
from databases import rows
from inbox_road import Road, effect, on
from postgresql_server import PostgresqlServer
from sqlalchemy import create_engine
from standby import standby_of

from inbox import Inbox
from inbox.claims import Limits, dialect_for
from outbox.errors import ConfigurationError
from outbox.process.urls import parse_url, with_driver
from outbox.tables import Place
from tests.unit.running import refused, run_here

INBOX = "from inbox import Inbox\n\ninbox = Inbox('billing')\ninbox.handler('orders')(lambda delivery: None)\n"


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


def test_tables_that_differ_are_refused_in_words_at_the_start(road: Road) -> None:
    """Without a look, a table of another version fails in the middle of the work, and with other words each time."""
    rows(road.database, "alter table inbox drop column received_at")
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    road.write("one")
    with pytest.raises(ConfigurationError, match=r"received_at is missing"):
        inbox.run(road.database, road.log, once=True)
    assert road.effects == []
    assert road.ids() == 0


def test_the_command_ends_with_exit_2_when_tables_differ(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    road = Road(sqlite_url)
    rows(road.database, "alter table inbox drop column received_at")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "differing_tables_handlers.py").write_text(INBOX)
    where = ("--database", road.database, "--log", road.log)
    result = run_here("inbox", "run", "differing_tables_handlers:inbox", *where, "--once")
    refused(result, 2, "received_at is missing")


def test_a_standby_is_refused_when_an_inbox_starts_and_with_each_new_session(
    own_postgresql_server: PostgresqlServer,
) -> None:
    road = Road(own_postgresql_server.url())
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    road.write("one")
    with standby_of(own_postgresql_server) as standby:
        with pytest.raises(ConfigurationError, match="this server is a standby: connect to the primary"):
            inbox.run(standby.url(), road.log, once=True)
        # After a failover the URL may lead to another server than at the start.
        url = parse_url(standby.url())
        engine = create_engine(with_driver(url))
        with (
            engine.connect() as connection,
            pytest.raises(ConfigurationError, match="a standby, which cannot"),
        ):
            dialect_for(url, Place(), "billing").prepare(connection, Limits(20))
        engine.dispose()
    assert road.effects == []
