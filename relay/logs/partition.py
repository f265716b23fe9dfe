"""Which partition a message belongs to: the same answer here, in SQL, and in any other language."""

from hashlib import md5
from uuid import UUID


def partition_of(key: str | None, id: UUID, partitions: int) -> int:  # noqa: A002 - the message's id, by its one name
    """Return the partition of a message: 0 up to, not including, `partitions`.

    It is the first four bytes of the md5 of the key's UTF-8, big-endian, modulo the number of partitions; without a key
    likewise of the id's canonical text. In SQL: `('x' || substr(md5(coalesce(key, id::text)), 1, 8))::bit(32)::bigint %
    partitions`. An empty key is a key.
    """
    text = str(id) if key is None else key
    digest = md5(text.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") % partitions
