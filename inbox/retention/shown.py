"""What a log keeps because somebody has not read it, for `inbox status`."""

from relay.logs.contract import LogOptions
from relay.logs.registry import open_log
from relay.logs.retention import RetainingLog, Unread


def unread(log: str, *, schema: str | None = None, prefix: str = "") -> list[Unread]:
    """Return which topics keep records that are past their retention; none of a log that sees to that itself.

    Raises:
        Unreachable: the log does not answer.
    """
    opened = open_log(log, LogOptions(schema, prefix))
    try:
        return list(opened.unread()) if isinstance(opened, RetainingLog) else []
    finally:
        opened.close()
