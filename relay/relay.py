"""The relay: takes the lease, and moves chunk after chunk until it is told to stop."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

from outbox.check import refuse_differences
from outbox.errors import ConfigurationError, Fenced, Forgotten, OutboxError, Permanent, Retryable
from outbox.journal import Lease, boot_seconds
from outbox.process.database import connected
from outbox.process.durations import checked_retention
from outbox.process.patience import Patience
from outbox.process.urls import parse_url
from outbox.tables import Place
from relay.connecting import logger
from relay.database import open_database
from relay.database.contract import OutboxDatabase, Registration
from relay.failpoints import Failpoint, failpoint
from relay.logs.builtin import BuiltinLog
from relay.logs.contract import Log, LogOptions
from relay.logs.registry import open_log
from relay.move.contract import Mover, Work
from relay.registration import register
from relay.retention.chores import Chores, Outbox
from relay.topics import parse_topics

DELIVERIES = ("at-least-once", "exactly-once", "at-most-once")
STARTS = ("earliest", "latest")
OPEN_CHUNKS = ("sent", "unsent")
RETAIN = timedelta(days=1)
SHORTEST_LEASE_SECONDS = 1.0
SHORTEST_WAIT_SECONDS = 0.005
LONGEST_WAIT_SECONDS = 0.04
STAND_BY_SECONDS = 1.0
PRUNE_STEPS = 1_000


@dataclass(slots=True)
class _Run:
    """What one call of `run` works with."""

    once: bool
    stop: threading.Event
    patience: Patience
    owner: str
    chores: Chores
    incarnation: UUID | None = None


class Relay:
    """Reads one outbox in commit order and produces to a log.

    Args:
        database: URL of the outbox's database.
        log: URL of the log.
        name: one relay of a name is active; others of that name stand by.
        delivery: `at-least-once`, `exactly-once` or `at-most-once`; the built-in log is always exactly-once.
        topics: comma-separated names, each may end in `*`.
        start: `earliest` or `latest`; counts when the relay is registered.
        lease: seconds after which another relay of this name may take over from one that is silent.
        retain: for how long entries stay in the outbox that every relay has read.
        schema: where the outbox's tables lie.
        prefix: likewise.
        wait: seconds to go on trying, with `once`, to reach the database and the log.
        open_chunk: `sent` or `unsent`: what a person found out about a chunk that was on its way, where the log has
            forgotten it; only a relay that says so asks for it.

    Raises:
        ConfigurationError: an argument cannot be read.
    """

    def __init__(
        self,
        database: str,
        log: str,
        *,
        name: str = "default",
        delivery: str = "at-least-once",
        topics: str = "*",
        start: str = "earliest",
        lease: float = 10.0,
        retain: timedelta = RETAIN,
        schema: str | None = None,
        prefix: str = "",
        wait: float = 10.0,
        open_chunk: str | None = None,
    ) -> None:
        self._url = parse_url(database)
        self._place = Place(schema, prefix)
        self._log_url = log
        self._name = name
        self._topics = parse_topics(topics)
        self._delivery = _one_of("--delivery", delivery, DELIVERIES)
        self._start = _one_of("--start", start, STARTS)
        self._open_chunk = None if open_chunk is None else _one_of("--open-chunk", open_chunk, OPEN_CHUNKS)
        self._lease_seconds = lease
        self._retain = checked_retention(retain, "--retain")
        self._wait = wait
        if lease < SHORTEST_LEASE_SECONDS:
            raise ConfigurationError(f"--lease {lease:g} is too short: write {SHORTEST_LEASE_SECONDS:g} second or more")
        if not name.strip() or not name.isprintable():
            raise ConfigurationError("--name is empty or has characters that cannot be printed")

    def run(self, *, once: bool = False, stop: threading.Event | None = None) -> None:
        """Move messages until `stop` is set; with `once`, until a look begun after the start finds nothing.

        Raises:
            ConfigurationError: tables are missing, the log is another one, and the like.
            Unreachable: with `once`, the database or the log did not answer for `wait` seconds.
            Permanent: with `once`, somebody else holds the lease; or the registration was forgotten.
            MessageAtFault: a message cannot be moved; everything before it is.
            Fenced: with `once`, another relay took over.
        """
        owner = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        stop = stop or threading.Event()
        patience = Patience("database and the log", stop, self._wait if once else None, logger)
        log = open_log(self._log_url, LogOptions(self._place.schema, self._place.prefix))
        chores = Chores(Outbox(self._url, self._place, self._name, self._retain), log)
        run = _Run(once, stop, patience, owner, chores)
        try:
            with chores.beside(stop, once=once):
                self._serve_on(run, log)
        finally:
            log.close()

    def _serve_on(self, run: _Run, log: Log) -> None:
        """Serve again after each passing fault."""
        while not run.stop.is_set():
            try:
                self._serve(run, log)
            except Fenced as error:
                if run.once:
                    raise
                logger.warning("fenced: %s; standing by", error)
                run.stop.wait(SHORTEST_WAIT_SECONDS)
            except Retryable as error:
                run.stop.wait(run.patience.failed(error))
            else:
                return

    def _serve(self, run: _Run, log: Log) -> None:
        """Connect, take the lease and move, until told to stop. Nothing read outlives the connection."""
        with self._connected(run, log) as (database, registration, local):
            lease = database.lease(registration.incarnation, run.owner)
            if not self._take(run, lease):
                return
            try:
                work = Work(
                    self._name,
                    database.installation(),
                    registration.incarnation,
                    log,
                    self._delivery,
                    local,
                    self._open_chunk,
                    self._topics.names,
                )
                mover = database.mover(lease, self._topics, work)
                try:
                    run.chores.working.set()
                    self._move(run, database, lease, mover, registration)
                finally:
                    run.chores.working.clear()
                    with suppress(OutboxError):
                        mover.close()
            finally:
                lease.release()

    @contextmanager
    def _connected(self, run: _Run, log: Log) -> Iterator[tuple[OutboxDatabase, Registration, bool]]:
        database = open_database(self._url, self._place, name=self._name, lease_seconds=self._lease_seconds)
        try:
            if run.incarnation is None:
                self._refuse_differences()
                database.refuse_pooler()
            local = database.holds(log)
            self._refuse_unfit(log, local=local)
            log.check()
            yield database, self._registered(run, database, log), local
        finally:
            database.close()

    def _registered(self, run: _Run, database: OutboxDatabase, log: Log) -> Registration:
        """Return the registration; made at the first connection of a run, and the same one afterwards."""
        if run.incarnation is not None:
            found = database.registered(self._name)
            if found is None or found.incarnation != run.incarnation:
                raise Forgotten(f"relay {self._name!r} was forgotten while it ran: start it again to register it anew")
            return found
        latest = self._start == "latest"
        registration, known = register(
            database, name=self._name, topics=self._topics.text, log=log.identity(), latest=latest
        )
        if known and latest:
            logger.info("relay %r is registered already and goes on where it stood: --start has no effect", self._name)
        run.incarnation = registration.incarnation
        return registration

    def _refuse_differences(self) -> None:
        """See that the outbox's tables are as we expect them; the log looks after its own."""
        with connected(self._url, name=f"relay {self._name} check") as connection:
            refuse_differences(connection, self._place, ["outbox"])

    def _refuse_unfit(self, log: Log, *, local: bool) -> None:
        if local and isinstance(log, BuiltinLog) and log.address.place != self._place:
            raise ConfigurationError(
                "in the outbox's own database the log has the outbox's schema and prefix: leave them out of --log"
            )
        if self._delivery == "exactly-once" and not log.capabilities.exactly_once:
            raise ConfigurationError(
                "--delivery exactly-once: this log cannot store records and the number of their chunk together;"
                " use at-least-once, whose repeats the inbox recognises"
            )

    def _take(self, run: _Run, lease: Lease) -> bool:
        """Take the lease, standing by while somebody else holds it; False when told to stop first."""
        began, said = boot_seconds(), False
        while not run.stop.is_set():
            taken = lease.take()
            if taken.held is not None:
                logger.info("relay %r has the lease, epoch %d", self._name, taken.held.epoch)
                failpoint(Failpoint.TAKEN)
                return True
            if run.once and boot_seconds() - began > 2 * self._lease_seconds:
                raise Permanent(
                    f"relay {self._name!r}: {taken.holder} holds the lease and keeps it; stop it, or wait for it"
                )
            if not said:
                logger.info("relay %r stands by: %s holds the lease", self._name, taken.holder)
                said = True
            run.stop.wait(min(STAND_BY_SECONDS, taken.remaining_seconds + SHORTEST_WAIT_SECONDS))
        return False

    def _move(
        self, run: _Run, database: OutboxDatabase, lease: Lease, mover: Mover, registration: Registration
    ) -> None:
        wait, pruned = SHORTEST_WAIT_SECONDS, lease.held.step
        while not run.stop.is_set():
            moved = mover.step()
            run.patience.worked()
            if moved.empty and run.once:
                return
            if lease.held.deadline - boot_seconds() < self._lease_seconds * 2 / 3:
                mover.renew()
            if lease.held.step - pruned >= PRUNE_STEPS:
                pruned = self._prune(database, registration, lease.held.step)
            if moved.entries:
                wait = SHORTEST_WAIT_SECONDS
            elif moved.empty:
                run.stop.wait(wait)
                wait = min(wait * 1.2, LONGEST_WAIT_SECONDS)
        mover.finish()

    def _prune(self, database: OutboxDatabase, registration: Registration, newest: int) -> int:
        try:
            database.prune_steps(registration.incarnation, newest)
        except OutboxError as error:
            logger.warning("old steps of the checkpoint were not deleted: %s; trying again later", error)
        return newest


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigurationError(f"{option} {value!r} is not one of {', '.join(allowed)}")
    return value
