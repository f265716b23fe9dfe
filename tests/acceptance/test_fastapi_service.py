"""The FastAPI example: its demo from end to end, and what it promises a reader, request by request."""

import asyncio
import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from acceptance.demos import DEMO_SECONDS, ROOT, interrupted_demo
from databases import rows
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from examples.fastapi_service import api, consumer
from examples.fastapi_service.accounts import Accounts
from examples.fastapi_service.models import Base
from inbox.testing import Outcome, deliver_async
from outbox.errors import MessageAtFault

EXAMPLE = ROOT / "examples" / "fastapi_service"
PROGRAMS = Path(sys.executable).parent
DEMO = [sys.executable, "-m", "examples.fastapi_service"]


# One process for several commands, because most of the time goes into starting.
ALEMBIC = """
import json, sys
from alembic.config import main
for command in json.loads(sys.argv[2]):
    main(argv=["-c", sys.argv[1], *command])
"""


def alembic(folder: Path, database: str, *commands: list[str]) -> None:
    """Run commands of Alembic's, as the README does."""
    done = subprocess.run(
        [sys.executable, "-c", ALEMBIC, str(folder / "alembic.ini"), json.dumps(commands)],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": driven(database), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def driven(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def database(postgresql_url: str) -> str:
    """A database with the service's tables."""
    engine = create_async_engine(driven(postgresql_url))

    async def make() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await engine.dispose()

    asyncio.run(make())
    return postgresql_url


Requests = Callable[[Callable[[httpx.AsyncClient], Awaitable[Any]]], Any]


@pytest.fixture
def requests(database: str, monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Runs a function with a client of the service, which runs in this process."""
    monkeypatch.setenv("DATABASE_URL", driven(database))

    async def served(send: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
        async with api.lifespan(api.app), httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await send(client)

    return lambda send: asyncio.run(served(send))


def post(requests: Requests, headers: dict[str, str] | None = None, **order: object) -> httpx.Response:
    answer: httpx.Response = requests(lambda client: client.post("/orders", json=order, headers=headers))
    return answer


def test_an_accepted_request_leaves_an_order_and_its_message(database: str, requests: Requests):
    answer = post(requests, {"X-Request-ID": "r-1"}, customer="ada", amount=42)
    assert answer.status_code == 201
    identity = answer.json()["id"]
    assert rows(database, "select id, customer, amount from orders") == [(identity, "ada", 42)]
    ((topic, key, kind, payload, headers),) = rows(database, "select topic, key, type, payload, headers from outbox")
    assert (topic, key, kind) == ("orders", "ada", "OrderPlaced")
    assert json.loads(payload) == {"id": identity, "customer": "ada", "amount": 42}
    assert headers == {"ce_correlationid": "r-1"}


def test_a_request_that_fails_after_write_leaves_no_message(database: str, requests: Requests):
    """INVARIANT I2: the message was written, and then the card was declined: it has never been.

    A service that sent it, instead of writing it in its transaction, would have told the world of an order that is not.
    """
    answer = post(requests, customer="ada", amount=api.CARD_LIMIT + 1)
    assert answer.status_code == 402
    assert rows(database, "select count(*) from outbox") == [(0,)]
    assert rows(database, "select count(*) from orders") == [(0,)]


def test_a_request_whose_commit_fails_is_not_answered_with_success(database: str, requests: Requests):
    """With FastAPI's default scope the response is sent before the COMMIT: a 201 for an order that is not."""
    rows(
        database,
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'not at the end'; end $$;"
        " create constraint trigger refuse after insert on orders deferrable initially deferred"
        " for each row execute function refuse()",
    )
    assert post(requests, customer="ada", amount=42).status_code == 500
    assert rows(database, "select (select count(*) from outbox), (select count(*) from orders)") == [(0, 0)]


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"customer": "ada"},
        {"customer": "", "amount": 1},
        {"customer": "a\0", "amount": 1},
        {"customer": "ada", "amount": 0},
        {"customer": "ada", "amount": 2**40},
        {"customer": "ada", "amount": "much"},
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(database: str, requests: Requests, order: dict[str, object]):
    assert post(requests, None, **order).status_code == 422
    assert rows(database, "select (select count(*) from outbox), (select count(*) from orders)") == [(0, 0)]


def test_of_a_customer_nobody_knows_nothing_is_known(requests: Requests):
    assert requests(lambda client: client.get("/customers/nobody")).status_code == 404


@asynccontextmanager
async def consuming(database: str) -> AsyncIterator[AsyncSession]:
    engine = create_async_engine(driven(database))
    try:
        async with AsyncSession(engine) as session:
            yield session
    finally:
        await engine.dispose()


def delivered(database: str, *payloads: object, kind: str = "OrderPlaced", twice: bool = False) -> list[Outcome]:
    """Hand messages to the consumer; return what became of them."""

    async def hand_over() -> list[Outcome]:
        outcomes = []
        async with consuming(database) as session:
            for payload in payloads:
                identity = {"id": UUID(int=1)} if twice else {}
                written = {"topic": "orders", "type": kind, "key": "ada", "payload": payload, **identity}
                outcomes.append(await deliver_async(consumer.inbox, session=session, **written))
            await session.commit()
        return outcomes

    return asyncio.run(hand_over())


def totals(database: str) -> list[tuple[Any, ...]]:
    return rows(database, "select customer, orders, amount from customer_totals")


def test_the_consumer_adds_up(database: str):
    first, second = {"id": 1, "customer": "ada", "amount": 40}, {"id": 2, "customer": "ada", "amount": 2}
    assert delivered(database, first, second) == [Outcome.HANDLED, Outcome.HANDLED]
    assert totals(database) == [("ada", 2, 42)]


def test_a_message_that_comes_twice_is_added_up_once(database: str):
    order = {"id": 1, "customer": "ada", "amount": 40}
    assert delivered(database, order, order, twice=True) == [Outcome.HANDLED, Outcome.DUPLICATE]
    assert totals(database) == [("ada", 1, 40)]


def test_a_newer_version_with_more_fields_is_handled(database: str):
    assert delivered(database, {"customer": "ada", "amount": 40, "currency": "EUR", "lines": [{}]}) == [Outcome.HANDLED]
    assert totals(database) == [("ada", 1, 40)]


def test_a_type_that_this_consumer_does_not_know_is_passed_by(database: str):
    assert delivered(database, {"anything": 1}, kind="OrderGiftWrapped") == [Outcome.IGNORED]


@pytest.mark.parametrize("payload", [{"customer": "ada"}, {"customer": "ada", "amount": "much"}, [], None, b"\xff"])
def test_a_version_that_lacks_what_is_needed_is_rejected_and_changes_nothing(database: str, payload: object):
    with pytest.raises(MessageAtFault):
        delivered(database, payload)
    assert totals(database) == []
    assert rows(database, "select count(*) from inbox") == [(0,)]


def test_a_rejected_message_is_handled_by_the_mended_consumer(database: str, tmp_path: Path):
    """Nothing is lost: the partition stops at the message, says so, and goes on with a model that has a default."""
    for payload in ({"customer": "ada"}, {"customer": "ada", "amount": 2}):
        values = ("orders", "ada", "OrderPlaced", json.dumps(payload).encode())
        rows(database, "insert into outbox (topic, key, type, payload) values (?, ?, ?, ?)", *values)
    mended = (EXAMPLE / "consumer.py").read_text().replace("    amount: int\n", "    amount: int = 40\n")
    (tmp_path / "mended.py").write_text(mended)

    def once(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAMS / command[0], "run", *command[1:], "--once", "--database", database, "--log", database],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert once("relay").returncode == 0
    stopped = once("inbox", "examples.fastapi_service.consumer:inbox")
    assert stopped.returncode == 1
    assert "amount: Field required" in stopped.stderr
    assert totals(database) == []
    assert once("inbox", "mended:inbox").returncode == 0
    assert totals(database) == [("ada", 2, 42)]


def test_the_migration_is_what_autogenerate_makes(postgresql_url: str, tmp_path: Path):
    """The committed migration, and one made now by the README's command, differ in their dates alone."""
    shutil.copytree(EXAMPLE, tmp_path / "service", ignore=shutil.ignore_patterns("__pycache__"))
    versions = tmp_path / "service" / "migrations" / "versions"
    (committed,) = versions.glob("*.py")
    before = committed.read_text()
    committed.unlink()
    alembic(tmp_path / "service", postgresql_url, autogenerate())
    (made,) = versions.glob("*.py")
    assert made.name == committed.name
    changed = [line for line in difflib.ndiff(before.splitlines(), made.read_text().splitlines()) if line[0] in "+-"]
    assert [line for line in changed if not line[2:].startswith("Create Date: ")] == []


def autogenerate() -> list[str]:
    """Return the arguments of the command that the README shows."""
    readme = (EXAMPLE / "README.md").read_text()
    found = re.search(r'alembic -c \S+ (revision --autogenerate) -m "([^"]+)" --rev-id (\d+)', readme)
    assert found
    return [*found[1].split(), "-m", found[2], "--rev-id", found[3]]


def test_migrations_lead_there_and_back(postgresql_url: str):
    up, down, check = ["upgrade", "head"], ["downgrade", "base"], ["check"]
    alembic(EXAMPLE, postgresql_url, up, check, down, up, check)


def test_the_demo_adds_up():
    done = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, timeout=DEMO_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("every accepted order is one message and one effect\n")


def test_the_demo_cleans_up_when_it_is_interrupted():
    interrupted_demo(DEMO, when="requests sent", number=signal.SIGINT)


IN_ORDER = Accounts(
    accepted=3, declined=1, orders=3, ordered=30, messages=3, in_the_log=3, without_request_id=0, added_up=3, total=30
)


def test_accounts_that_add_up_are_in_order():
    assert IN_ORDER.in_order


@pytest.mark.parametrize(
    "fault", ["accepted", "orders", "messages", "in_the_log", "added_up", "total", "without_request_id"]
)
def test_accounts_see_each_fault(fault: str):
    assert not replace(IN_ORDER, **{fault: getattr(IN_ORDER, fault) + 1}).in_order


@pytest.fixture(autouse=True)
def nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests are not the example's."""
    for name in [name for name in os.environ if name.startswith(("OUTBOX_", "RELAY_", "INBOX_", "DATABASE_URL"))]:
        if not name.startswith("OUTBOX_TEST_"):
            monkeypatch.delenv(name)
