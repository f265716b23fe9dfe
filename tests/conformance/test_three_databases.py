"""The whole road over three databases: the service's, the log's, and the one of those who handle."""

from pathlib import Path

import pytest
from databases import install, rows, write
from sqlalchemy import text
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox
from relay import Relay


@pytest.mark.parametrize("log_dialect", ["sqlite", "postgresql"])
@pytest.mark.parametrize("handlers_dialect", ["sqlite", "postgresql"])
def test_an_inbox_whose_database_is_not_the_logs_handles_each_message_once(
    postgresql_url: str, sqlite_url: str, tmp_path: Path, log_dialect: str, handlers_dialect: str
):
    """INVARIANT I4: effects, ids and claims lie in the handlers' database; the log is read by its URL alone."""
    outbox_url = install(f"sqlite:///{tmp_path / 'service.db'}")
    urls = {"sqlite": f"sqlite:///{tmp_path / 'log.db'}", "postgresql": postgresql_url}
    log_url = install(urls[log_dialect])
    if handlers_dialect == "sqlite":
        handlers_url = install(sqlite_url)
    elif log_dialect == "sqlite":
        handlers_url = install(postgresql_url)
    else:
        handlers_url = log_url
    rows(handlers_url, "create table effects (body text)")
    inbox = Inbox("billing")

    @inbox.handler("orders")
    def handle(delivery: Delivery, session: Session) -> None:
        session.execute(
            text("insert into effects values (:body)"), {"body": (delivery.message.payload or b"").decode()}
        )

    for batch in range(2):
        for number in range(10):
            write(outbox_url, "orders", f"{batch}{number}", key="k")
        Relay(outbox_url, log_url).run(once=True)
        inbox.run(handlers_url, log_url, once=True)
    inbox.run(handlers_url, log_url, once=True)
    assert [row[0] for row in rows(handlers_url, "select body from effects")] == [
        f"{batch}{number}" for batch in range(2) for number in range(10)
    ]
