"""A relay's journal with many steps, made by the relay's own lease."""

from contextlib import closing

from outbox.process.urls import parse_url
from outbox.tables import Place
from relay.checkpoint import Checkpoint
from relay.database import open_database
from relay.logs.contract import LogOptions
from relay.logs.registry import open_log
from relay.registration import register

PRUNE_EVERY = 1_000


def take_steps(url: str, name: str, steps: int) -> str:
    """Register a relay at the oldest entry and let it take so many steps, as hours of work do; return its name."""
    database = open_database(parse_url(url), Place(), name=name, lease_seconds=30)
    with closing(open_log(url, LogOptions(None, ""))) as log:
        registration, _ = register(database, name=name, topics="*", log=log.identity(), latest=False)
    lease = database.lease(registration.incarnation, "measured")
    lease.take()
    state = Checkpoint.of(lease.held.state).columns()
    for number in range(steps):
        lease.advance(**state)
        if number % PRUNE_EVERY == 0:
            database.prune_steps(registration.incarnation, lease.held.step)
    lease.release()
    database.close()
    return name
