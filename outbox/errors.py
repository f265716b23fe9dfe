"""What can go wrong, as a tree by what the caller can do about it."""


class OutboxError(Exception):
    """Base of every error raised by outbox, relay and inbox."""


class ConfigurationError(OutboxError):
    """The set-up is wrong (URL, tables, module, option): mend it and start again. Exit code 2."""


class WriteError(OutboxError, ValueError):
    """A message was refused at `write`, before anything was stored. The transaction can go on without it."""


class Retryable(OutboxError):
    """A passing fault (connection lost, server away, time-out): the same work may be tried again."""


class Unreachable(Retryable):
    """A database or log does not answer, refuses the password or the database name. Exit code 1 after `--wait`."""


class TimedOut(Retryable):
    """A statement or lock wait reached its bound; its transaction is rolled back and the connection is still good."""


class Permanent(OutboxError):
    """Trying again will not help; a person has to decide. Exit code 1."""


class MessageAtFault(Permanent):
    """One message is itself the reason that it cannot be moved; the words name its id and topic."""


class Forgotten(Permanent):
    """The registration this process works for is gone (`relay forget`, `inbox forget`). Exit code 1."""


class Fenced(OutboxError):
    """Another process has taken the next step: this one no longer holds the lease. Exit code 3 under `--once`."""
