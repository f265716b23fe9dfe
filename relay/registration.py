"""Registering a relay, and forgetting one."""

from contextlib import closing
from uuid import uuid4

from outbox.errors import ConfigurationError, Permanent
from relay.connecting import connected
from relay.database.contract import OutboxDatabase, Registration


def register(database: OutboxDatabase, *, name: str, topics: str, log: str, latest: bool) -> tuple[Registration, bool]:
    """Return this relay's registration, made if there is none of its name, and whether it was there.

    Raises:
        ConfigurationError: the name is registered for other topics, another log, cluster or database.
    """
    cluster, oid = database.identity()
    wanted = Registration(name, uuid4(), topics, log, cluster, oid)
    found = database.registered(name)
    registration = found or database.register(wanted, latest=latest)
    _refuse_another(registration, wanted)
    return registration, found is not None


def _refuse_another(found: Registration, wanted: Registration) -> None:
    name = wanted.name
    remedy = f"use another --name, or let this one go with `relay forget {name}`"
    if (found.cluster, found.database) != (wanted.cluster, wanted.database):
        raise ConfigurationError(
            f"relay {name!r} was registered in another cluster or database, whose snapshots mean nothing here:"
            f" drain before you move a database; now `relay forget {name}` and start with --start latest, or with"
            " earliest to send all again"
        )
    if found.topics != wanted.topics:
        raise ConfigurationError(
            f"relay {name!r} is registered for topics {found.topics!r}, not {wanted.topics!r}: {remedy}"
        )
    if found.log != wanted.log:
        raise ConfigurationError(
            f"relay {name!r} is registered for another log ({found.log}, not {wanted.log}): {remedy}"
        )


def forget(database: str, name: str, *, schema: str | None = None, prefix: str = "", wait: float = 10.0) -> None:
    """Delete a relay's registration; what it had not read is not delivered by it any more.

    Raises:
        ConfigurationError: no relay of that name is registered.
        Permanent: it is alive.
    """
    with closing(connected(database, schema=schema, prefix=prefix, wait=wait, name="forget")) as outbox:
        owner = outbox.forget(name)
    if owner is not None:
        raise Permanent(f"relay {name!r} is alive: {owner} holds its lease; stop it, and forget it then")
