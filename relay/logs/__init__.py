"""The road between relay and inbox: what a log is, and how one is opened by its URL.

Each log has two hands, a producer for a relay and a consumer for a member of a group. Third parties add logs by the
entry-point group `relay.logs`.
"""

from relay.logs.contract import (
    Batch,
    Bounds,
    Capabilities,
    Consumer,
    Failure,
    Listener,
    Log,
    LogOptions,
    NumberedProducer,
    Partition,
    Producer,
    ProducerIdentity,
    Record,
    Settlement,
)
from relay.logs.partition import partition_of
from relay.logs.registry import open_log

__all__ = [
    "Batch",
    "Bounds",
    "Capabilities",
    "Consumer",
    "Failure",
    "Listener",
    "Log",
    "LogOptions",
    "NumberedProducer",
    "Partition",
    "Producer",
    "ProducerIdentity",
    "Record",
    "Settlement",
    "open_log",
    "partition_of",
]
