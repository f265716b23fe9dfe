"""Finds the Inbox that `inbox run MODULE:ATTR` names."""

import importlib
import os
import sys
from operator import attrgetter

from inbox import Inbox
from outbox.errors import ConfigurationError, OutboxError
from outbox.tables import Place


def load_inbox(path: str) -> Inbox:
    """Import a module, with the working directory first on the path, and return the Inbox in it.

    Args:
        path: `package.module:attribute`.

    Raises:
        ConfigurationError: no such module or attribute, it fails while it is imported, or it is no Inbox.
    """
    name, colon, attribute = path.partition(":")
    if not (colon and name and attribute):
        raise ConfigurationError(f"{path!r} names no Inbox: write MODULE:ATTR, as in app.handlers:inbox")
    here = os.getcwd()  # noqa: PTH109 - a plain text for sys.path
    if here not in sys.path[:1]:
        sys.path.insert(0, here)
    module = _import(name, here)
    try:
        found = attrgetter(attribute)(module)
    except AttributeError:
        raise ConfigurationError(f"module {name} has no attribute {attribute!r}: it names the Inbox to run") from None
    if not isinstance(found, Inbox):
        raise ConfigurationError(
            f"{path} is a {type(found).__name__}, not an Inbox: name the one that has the handlers"
        )
    return found


def refuse_other_place(place: Place, schema: str | None, prefix: str | None) -> None:
    """See that options do not contradict the Inbox about where the tables are.

    Raises:
        ConfigurationError: they do.
    """
    for what, given, own in (("schema", schema, place.schema), ("prefix", prefix, place.prefix)):
        if given is not None and given != (own or ""):
            raise ConfigurationError(
                f"the option says {what} {given!r}, the Inbox {own or 'none'!r}: the Inbox's metadata decides, so leave"
                f" out --{what} (and OUTBOX_{what.upper()})"
            )


def _import(name: str, here: str) -> object:
    try:
        return importlib.import_module(name)
    except OutboxError as error:
        raise ConfigurationError(f"module {name} cannot be imported: {error}") from error
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(f"there is no module {name}: looked in {here} and on Python's path") from error
        raise ConfigurationError(f"module {name} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"module {name} fails while it is imported: {_words(error)}") from error


def _words(error: BaseException) -> str:
    said = str(error).strip()
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
