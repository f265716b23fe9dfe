"""The names of CloudEvents' attributes and of the other headers that we set ourselves."""

SPECVERSION = "ce_specversion"
ID = "ce_id"
SOURCE = "ce_source"
TYPE = "ce_type"
TIME = "ce_time"
SEQUENCE = "ce_sequence"
RELAY_EPOCH = "ce_relayepoch"
PARTITION_KEY = "ce_partitionkey"
CORRELATION_ID = "ce_correlationid"
CAUSATION_ID = "ce_causationid"
CONTENT_TYPE = "content-type"
TRACEPARENT = "traceparent"

TAKEN = (TRACEPARENT, CORRELATION_ID, CAUSATION_ID)
"""Reserved names that lie in the row's headers; `write` sets them from the context, plain SQL may set them itself."""

RESERVED = frozenset(
    {SPECVERSION, ID, SOURCE, TYPE, TIME, SEQUENCE, RELAY_EPOCH, PARTITION_KEY, CONTENT_TYPE, *TAKEN},
)
"""The names that we set, in lower case."""

PREFIXES = ("ce_", "cloudevents:", "cloudevents_")
"""What CloudEvents' attributes begin with on one broker or another, in lower case; all of theirs, not only ours."""


def is_reserved(name: str) -> bool:
    """Return whether a user's header may not have this name, in any case."""
    lower = name.lower()
    return lower in RESERVED or lower.startswith(PREFIXES)
