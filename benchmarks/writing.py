"""P3: what `write` adds to a transaction, against a second INSERT written by hand."""

import json
import time
from collections.abc import Callable, Iterator
from statistics import mean

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Text, create_engine, insert
from sqlalchemy.orm import Session, declarative_base
from uuid_utils.compat import uuid7

from benchmarks.ground import Ground, value
from benchmarks.measuring import Row, Sample, in_turns, middle, ratios
from outbox import Outbox

TRANSACTIONS = 20_000
BLOCK = 25
BAR = 1.05

Base = declarative_base(metadata=MetaData())


class Order(Base):  # type: ignore[valid-type, misc]
    __tablename__ = "customer_order"
    id = Column(Integer, primary_key=True)
    note = Column(Text)


outbox = Outbox(metadata=Base.metadata, source="/orders")
ENTRY = outbox.tables.outbox
ORDER = Order.__table__
NOTE = "x" * 40
PAYLOAD = {"id": 4711, "note": NOTE, "lines": [{"article": "a-1", "count": 2}, {"article": "b-2", "count": 1}]}
KEY = "4711"


def by_hand() -> dict[str, object]:
    """Return all that `write` stores, made by hand."""
    return {
        "id": uuid7(),
        "source": "/orders",
        "topic": "orders",
        "key": KEY,
        "type": "OrderPlaced",
        "payload": json.dumps(PAYLOAD).encode(),
        "content_type": "application/json",
        "headers": None,
    }


SECOND = insert(ENTRY).inline()  # inline: the position is not asked for, as it is not by `write`


def session_write(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add(Order(note=NOTE))
        outbox.write(session, topic="orders", key=KEY, type="OrderPlaced", payload=PAYLOAD)


def session_by_hand(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add(Order(note=NOTE))
        session.flush()
        session.execute(SECOND, by_hand())


def connection_write(engine: Engine) -> None:
    with engine.begin() as connection:
        _first(connection)
        outbox.write(connection, topic="orders", key=KEY, type="OrderPlaced", payload=PAYLOAD)


def connection_by_hand(engine: Engine) -> None:
    with engine.begin() as connection:
        _first(connection)
        connection.execute(SECOND, by_hand())


def _first(connection: Connection) -> None:
    connection.execute(insert(ORDER).inline(), {"note": NOTE})


def p3(ground: Ground, scale: float, rounds: int) -> Iterator[Row]:  # noqa: ARG001 - it has rounds of its own
    """A transaction of one business INSERT plus `write`, against the same with a hand-written second INSERT."""
    url = ground.database()
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    Base.metadata.create_all(engine)
    blocks = max(10, int(TRANSACTIONS * scale) // BLOCK)
    pairs = {
        "ORM Session": (session_write, session_by_hand),
        "Core Connection": (connection_write, connection_by_hand),
    }
    for name, (ours, theirs) in pairs.items():
        before = value(url, "select count(*) from outbox")
        _block(engine, ours)
        _block(engine, theirs)
        samples = in_turns({"write": _taking(engine, ours), "by hand": _taking(engine, theirs)}, blocks)
        stored = value(url, "select count(*) from outbox") - before
        if stored != 2 * (blocks + 1) * BLOCK or value(url, "select count(*) from customer_order") < stored:
            raise AssertionError(f"{stored} messages of {2 * (blocks + 1) * BLOCK} were stored")
        yield _row(name, samples["write"], samples["by hand"])
    engine.dispose()
    ground.drop(url)


def _taking(engine: Engine, transaction: Callable[[Engine], None]) -> Callable[[], Sample]:
    return lambda: _block(engine, transaction)


def _block(engine: Engine, transaction: Callable[[Engine], None]) -> Sample:
    begun, cpu = time.perf_counter(), time.process_time()
    for _ in range(BLOCK):
        transaction(engine)
    return Sample(time.perf_counter() - begun, BLOCK, time.process_time() - cpu)


def _row(name: str, ours: list[Sample], theirs: list[Sample]) -> Row:
    ratio, spread = middle(ratios(ours, theirs, lambda sample: sample.seconds))
    cpu, cpu_spread = middle(ratios(ours, theirs, lambda sample: sample.cpu_seconds))
    return Row(
        "P3",
        f"{len(ours) * BLOCK:,} transactions of an INSERT and `write`, {name}",
        f"{_microseconds(ours, lambda sample: sample.seconds)} us",
        f"{_microseconds(theirs, lambda sample: sample.seconds)} us (INSERT by hand)",
        ratio,
        spread,
        f"<= {BAR:g}",
        ratio <= BAR,
        {
            "client's CPU, us": _microseconds(ours, lambda sample: sample.cpu_seconds),
            "by hand, us": _microseconds(theirs, lambda sample: sample.cpu_seconds),
            "CPU ratio": f"{cpu:.2f} ({cpu_spread[0]:.2f}-{cpu_spread[1]:.2f})",
        },
    )


def _microseconds(samples: list[Sample], of: Callable[[Sample], float]) -> str:
    return f"{mean(of(sample) / sample.amount for sample in samples) * 1e6:,.0f}"
