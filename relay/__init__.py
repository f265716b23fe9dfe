"""Part two of the road: the relay reads the outbox in commit order and produces to a log, once per message.

`Relay` is loaded when it is first asked for, because importing `relay.logs`, which the inbox needs, runs this module.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.relay import Relay

__all__ = ["Relay"]


def __getattr__(name: str) -> Any:
    if name == "Relay":
        from relay.relay import Relay  # noqa: PLC0415 - see above

        return Relay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
