"""Keeps passwords out of all that is printed: those of the URLs that we were given, and whatever looks like one."""

import re
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

HIDDEN = "***"
_HIDDEN_NAMES = r"[\w.-]*(?:password|passwd|secret|token)[\w.-]*"
_IN_URL = re.compile(r"(?P<before>\b[A-Za-z][\w+.-]*://[^:/@\s]*:)[^\s'\"]*(?P<after>@)")
_IN_SETTING = re.compile(rf"(?P<before>\b{_HIDDEN_NAMES}\s*=\s*)(?:'(?:[^'\\]|\\.)*'|[^\s&'\",;]+)", re.IGNORECASE)
_known: set[str] = set()


def remember(url: str) -> None:
    """Hide the password of this URL from now on, wherever it turns up."""
    open_words, secrets = _parts(url)
    for secret in secrets:
        # A password that is also the user's or database's name is no secret, and hiding it would hide who was refused.
        if isinstance(secret, str) and secret and secret not in open_words:
            _known.update({secret, quote(secret, safe=""), quote_plus(secret)})


def _parts(url: str) -> tuple[set[str | None], list[object]]:
    """Return the words of a URL that may be shown, and those that may not."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return _parts_of_several_hosts(url)
    open_words = {parsed.username, parsed.host, parsed.database, parsed.drivername}
    return open_words, [parsed.password, *(parsed.query[key] for key in parsed.query if is_secret(key))]


def _parts_of_several_hosts(url: str) -> tuple[set[str | None], list[object]]:
    """Read what is no database URL: brokers with commas between."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return set(), []
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    secrets = [value for key, value in parse_qsl(parts.query) if is_secret(key)]
    return {unquote(user), parts.scheme}, [unquote(password), *secrets]


def is_secret(key: str) -> bool:
    """Return whether a URL's query setting of this name holds a secret."""
    return re.fullmatch(_HIDDEN_NAMES, key, re.IGNORECASE) is not None


def redacted(text: str) -> str:
    """Return `text` as it may be shown."""
    text = _IN_URL.sub(rf"\g<before>{HIDDEN}\g<after>", text)
    text = _IN_SETTING.sub(rf"\g<before>{HIDDEN}", text)
    for secret in sorted(_known, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text
