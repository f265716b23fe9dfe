"""Which adapter opens a log's URL: ours by name, third parties' by the entry-point group `relay.logs`."""

import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from outbox.errors import ConfigurationError
from relay.logs.contract import Log, LogOptions

ENTRY_POINTS = "relay.logs"
"""The entry-point group: the name is the URL's scheme, the object an `Adapter`."""

Adapter = Callable[[str, LogOptions], Log]
"""What an adapter offers: `open(url, options)`. It raises ConfigurationError for a URL that it cannot read."""

_OURS = {
    "kafka": "relay.logs.kafka",
    "memory": "relay.logs.memory",
    "postgresql": "relay.logs.builtin",
    "sqlite": "relay.logs.builtin",
}
_EXTRAS = {"kafka": "kafka", "postgresql": "postgresql"}
_ALIASES = {"postgres": "postgresql"}
_PACKAGES = ("outbox", "relay", "inbox")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.-]*)(?:\+[A-Za-z0-9_.+-]*)?://")


def open_log(url: str, options: LogOptions = LogOptions()) -> Log:  # noqa: B008 - frozen: one for all is safe
    """Open a log by its URL. The log need not be reachable: see `Log.check`.

    Args:
        url: `postgresql://...` or `sqlite:///...` with any driver or none, `kafka://host:9092`, `memory://NAME`, or a
            third party's scheme.
        options: what an adapter is told beside the URL.

    Raises:
        ConfigurationError: the URL has no scheme or one that nobody handles, the adapter cannot read it, or a package
            that it needs is not installed. The words never show the URL, which may hold a password.
    """
    scheme = scheme_of(url)
    try:
        return _adapter(scheme)(url, options)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _PACKAGES:
            raise
        raise ConfigurationError(
            f"a log at {scheme}:// needs the Python package {missing!r}, which is missing: {_remedy(scheme, missing)}"
        ) from error


def scheme_of(url: str) -> str:
    """Return the URL's scheme without its driver: `postgresql+asyncpg://...` is `postgresql`.

    Raises:
        ConfigurationError: there is none.
    """
    found = _SCHEME.match(url)
    if found is None:
        raise ConfigurationError(f"the log's URL has no scheme: it begins with one of {_known()}")
    scheme = found.group(1).lower()
    return _ALIASES.get(scheme, scheme)


def _adapter(scheme: str) -> Adapter:
    if scheme in _OURS:
        return cast("Adapter", import_module(_OURS[scheme]).open)
    theirs = _third_parties().get(scheme)
    if theirs is None:
        raise ConfigurationError(f"unknown log scheme {scheme!r}: known are {_known()}")
    return cast("Adapter", theirs.load())


def _third_parties() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=ENTRY_POINTS)}


def _known() -> str:
    return ", ".join(f"{scheme}://" for scheme in sorted({*_OURS, *_third_parties()}))


def _remedy(scheme: str, missing: str) -> str:
    if scheme in _EXTRAS:
        return f'pip install "outbox-relay-inbox[{_EXTRAS[scheme]}]"'
    return f"install what the adapter asks for (pip install {missing})"
