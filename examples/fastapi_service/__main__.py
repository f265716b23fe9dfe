"""Runs the demo: migrates a database, starts API, relay and consumer, sends requests, and closes the accounts.

python -m examples.fastapi_service
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter

import httpx
from sqlalchemy import Engine, create_engine

from examples.fastapi_service import accounts, api
from examples.running import PROGRAMS, ROOT, Failed, Processes, folder, free_port, postgresql, sigterm_as_ctrl_c

CUSTOMERS = ["ada", "grace", "edsger", "barbara", "donald"]
REQUESTS = 200
AT_A_TIME = 8
DECLINED = 0.2
ALEMBIC = ["alembic", "-c", "examples/fastapi_service/alembic.ini"]
PATIENCE_SECONDS = 30


def environment(database: str) -> dict[str, str]:
    """Return the settings of all programs. The log is in the same database here; it could be a broker."""
    return {**os.environ, "DATABASE_URL": database, "RELAY_LOG": database, "INBOX_LOG": database}


def run(*command: str, database: str) -> None:
    """Run a program to its end, as you would type it."""
    print(f"$ {' '.join(command)}", flush=True)
    done = subprocess.run(
        [PROGRAMS / command[0], *command[1:]],
        cwd=ROOT,
        env=environment(database),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(done.stdout + done.stderr)


def start(processes: Processes, name: str, *command: str, database: str) -> None:
    """Start a process that stays."""
    print(f"$ {' '.join(command)} &", flush=True)
    processes.start(name, *command, environment=environment(database))


def wait_until_it_answers(url: str, processes: Processes) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        processes.complain_if_one_ended()
        try:
            httpx.get(f"{url}/docs")
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise Failed(f"the service does not answer: {processes.said('api').read_text()[-3000:]}") from None
            time.sleep(0.1)
        else:
            return


async def send_requests(url: str, engine: Engine) -> Counter[int]:
    """Send orders, several at a time; return how often each status was answered."""
    answered: Counter[int] = Counter()
    remaining = iter(range(1, REQUESTS + 1))

    async def customer(client: httpx.AsyncClient) -> None:
        for number in remaining:
            declined = random.random() < DECLINED
            amount = random.randint(1, api.CARD_LIMIT) + (api.CARD_LIMIT if declined else 0)
            order = {"customer": random.choice(CUSTOMERS), "amount": amount}
            answer = await client.post("/orders", json=order, headers={"X-Request-ID": f"request-{number}"})
            answered[answer.status_code] += 1
            if number % 50 == 0:
                with engine.connect() as connection:
                    behind = accounts.added_up(connection)
                print(f"  {number:>4} requests sent: {dict(sorted(answered.items()))}; {behind} added up", flush=True)

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as client:
        await asyncio.gather(*(customer(client) for _ in range(AT_A_TIME)))
    return answered


def wait_until_added_up(engine: Engine, wanted: int, processes: Processes) -> None:
    """Wait for the consumer; when it does not come to the end, the accounts will say so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        processes.complain_if_one_ended()
        with engine.connect() as connection:
            if accounts.added_up(connection) >= wanted:
                return
        time.sleep(0.1)


def main() -> int:
    print("starting a PostgreSQL of the demo's own", flush=True)
    with postgresql("orders") as databases, folder() as logs:
        database = databases["orders"]
        run(*ALEMBIC, "upgrade", "head", database=database)
        run(*ALEMBIC, "check", database=database)
        run("outbox", "check", database=database)
        engine = create_engine(database)
        with Processes(logs) as processes:
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            serve = ["examples.fastapi_service.api:app", "--host", "127.0.0.1", "--port", str(port)]
            start(processes, "api", "uvicorn", *serve, database=database)
            start(processes, "relay", "relay", "run", database=database)
            start(processes, "consumer", "inbox", "run", "examples.fastapi_service.consumer:inbox", database=database)
            wait_until_it_answers(url, processes)
            print(f"\nsending {REQUESTS} orders to POST /orders, {AT_A_TIME} at a time", flush=True)
            answered = asyncio.run(send_requests(url, engine))
            wait_until_added_up(engine, answered[201], processes)
            print("\nGET /customers/...")
            for name in CUSTOMERS:
                print(f"  {name:<10}{httpx.get(f'{url}/customers/{name}').text}")
        with engine.connect() as connection:
            closed = accounts.close_accounts(connection, accepted=answered[201], declined=answered[402])
        engine.dispose()
    print(f"\n{closed.table()}\n")
    in_order = closed.in_order and closed.accepted + closed.declined == REQUESTS
    print("every accepted order is one message and one effect" if in_order else "THE ACCOUNTS ARE NOT IN ORDER")
    return 0 if in_order else 1


if __name__ == "__main__":
    try:
        with sigterm_as_ctrl_c():
            sys.exit(main())
    except Failed as failed:
        sys.exit(str(failed))
    except KeyboardInterrupt:
        sys.exit("stopped")
