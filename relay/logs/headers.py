"""The headers of a row, whoever wrote it, as texts."""

import json
from collections.abc import Mapping


def header_texts(value: object) -> dict[str, str]:
    """Return a JSON object of headers as texts: numbers and truth values as JSON writes them, nulls dropped.

    Args:
        value: the decoded JSON of a row's `headers`, or its text, or None.

    Raises:
        ValueError: it is no JSON object.
    """
    if value is None:
        return {}
    if isinstance(value, (str, bytes)):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError("its headers are not a JSON object of texts")  # noqa: TRY004 - the value is data, not a type in code
    return {
        str(name): text if isinstance(text, str) else json.dumps(text)
        for name, text in value.items()
        if text is not None
    }
