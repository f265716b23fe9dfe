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
"""Names, in lower case, that a user's headers may not have; see `is_reserved`."""


def is_reserved(name: str) -> bool:
    """Return whether a header of this name, in any case, is ours to set."""
    return name.lower() in RESERVED
