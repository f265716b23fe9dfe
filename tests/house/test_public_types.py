"""The types that users see: a program of theirs passes mypy's strict mode against the packages as installed."""

import subprocess
import sys
from pathlib import Path

from tests.house.source import ROOT

PROGRAM = """
from dataclasses import dataclass
from typing import assert_type
from uuid import UUID

from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session

from inbox import Delivery, Inbox, Reject, Retry
from outbox import Message, Outbox


class Base(DeclarativeBase):
    pass


@dataclass
class OrderPlaced:
    id: int


outbox = Outbox(metadata=Base.metadata, source="/orders")
inbox = Inbox("billing", metadata=Base.metadata)
others = Inbox("others")


def write_from_each(
    session: Session,
    scoped: scoped_session[Session],
    connection: Connection,
    later: AsyncSession,
    core: AsyncConnection,
) -> None:
    assert_type(outbox.write(session, topic="orders", key="1", type="OrderPlaced", payload={"id": 1}), Message)
    outbox.write(scoped, topic="orders", payload=b"bytes", headers={"tenant": "a"})
    outbox.write(connection, topic="orders", payload=None, id=UUID(int=1))
    outbox.write(later, topic="orders", payload=OrderPlaced(1))
    outbox.write(core, topic="orders", payload="text")


@inbox.handler("orders", type="OrderPlaced")
def charge(delivery: Delivery[OrderPlaced], session: Session) -> None:
    assert_type(delivery.data, OrderPlaced)
    assert_type(delivery.message, Message)
    assert_type(delivery.attempt, int)
    if delivery.redelivered:
        raise Retry
    raise Reject("no")


@inbox.handler("orders")
def keep(delivery: Delivery, session: Session) -> None:
    print(delivery.data["id"])


@others.handler("orders")
async def charge_later(delivery: Delivery[OrderPlaced], session: AsyncSession) -> None:
    assert_type(delivery.partition, int)
"""


def test_a_users_program_type_checks(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # With the project's own settings (strict), and so with what its cache has of the libraries.
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", str(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
