"""One membership of a group, from joining to leaving: its heartbeats, and its hand on the group's tables.

Heartbeats have a thread of their own, so that a handler of a minute, or a database that is away, costs nobody the
membership. They share one connection with what the consumer does to the group's tables.
"""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from uuid import uuid4

from outbox.errors import OutboxError, Retryable, TimedOut
from outbox.journal import boot_seconds
from relay.logs.builtin.group.store import Beat, GroupStore, Pulse, Roll

T = TypeVar("T")

GRACE_BEATS = 2
"""A member that was itself not heard waits so long before it calls others gone: they may have waited for the same."""


class Membership:
    """Being a member under one name, which is never used again: what is left of an earlier one cannot be taken for it.

    Args:
        store: opens a connection to the group's tables.
        topics: what the member states.
        pulse: how often it beats.

    Attributes:
        name: the member's name: host, process and a random part.
        pulse: how often it beats.
        epoch: the group's, as of the newest answer.
    """

    def __init__(self, store: Callable[[], GroupStore], topics: tuple[str, ...], pulse: Pulse) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.epoch = 0
        self._open = store
        self._topics = topics
        self.pulse = pulse
        self._store: GroupStore | None = None
        self._lock = threading.Lock()
        self._until = self._trusts_from = 0.0
        self._lost = False
        self._error: Exception | None = None
        self._failure: Retryable | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def join(self) -> None:
        """Become a member, and begin to beat. Again: no effect, or after an error under the same name."""
        if self._thread is not None:
            return
        sent = boot_seconds()
        self.epoch = self.do(lambda store: store.join(self.name, self._topics))
        self._heard(sent)
        self._thread = threading.Thread(target=self._beat_on, name=f"heartbeat {self.name}", daemon=True)
        self._thread.start()

    def is_certain(self) -> bool:
        """Return whether nobody can have called this member gone yet: counted from before its heartbeat was sent."""
        return not self._lost and boot_seconds() < self._until

    def is_lost(self) -> bool:
        """Return whether it is known that others have called this member gone.

        Raises:
            OutboxError: heartbeats cannot go on.
        """
        if self._error is not None:
            raise self._error
        return self._lost

    def refuse_silence(self) -> None:
        """Say why no heartbeat came through, if so.

        Raises:
            Retryable: the log does not answer. That it is busy is no such reason: on SQLite one slow handler is enough.
        """
        if self._failure is not None and not isinstance(self._failure, TimedOut):
            raise self._failure

    def roll(self) -> Roll:
        """Return who is in the group."""

        def ask(store: GroupStore) -> Roll:
            roll = store.roll()
            self.epoch = roll.epoch
            return roll

        return self.do(ask)

    def lose(self) -> None:
        """A statement has shown that this member is none any more."""
        self._lost = True

    def do(self, work: Callable[[GroupStore], T]) -> T:
        """Do something to the group's tables; opens a connection when there is none."""
        with self._lock:
            if self._store is None:
                self._store = self._open()
            try:
                return work(self._store)
            except TimedOut:
                raise
            except OutboxError:
                self._disconnect()
                raise

    def end(self, *, leave: bool) -> None:
        """Stop beating; with `leave`, let others take over at once. What fails is left to the time-out."""
        self._over.set()
        with suppress(OutboxError):
            if leave and self.is_certain():
                self.do(lambda store: store.leave(self.name))
        if self._thread is not None:
            self._thread.join(self.pulse.gone_seconds)
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            with suppress(OutboxError):
                store.close()

    def _beat_on(self) -> None:
        while not self._over.wait(self.pulse.beat_seconds) and not self._lost:
            try:
                self._beat()
                self._failure = None
            except Retryable as error:
                self._failure = error
            except Exception as error:  # noqa: BLE001 - raised where the member polls
                self._error = error
                return

    def _beat(self) -> None:
        sent = boot_seconds()
        beat = self.do(self._beat_once)
        if beat is None:
            self._lost = True
            return
        self._heard(sent)
        if beat.others_gone and boot_seconds() >= self._trusts_from:
            self.do(lambda store: store.remove_gone())

    def _beat_once(self, store: GroupStore) -> Beat | None:
        beat = store.beat(self.name)
        if beat is not None:
            self.epoch = beat.epoch
        return beat

    def _heard(self, sent: float) -> None:
        """The log has seen this member."""
        now = boot_seconds()
        if now >= self._until:
            self._trusts_from = now + GRACE_BEATS * self.pulse.beat_seconds
        self._until = sent + self.pulse.gone_seconds
