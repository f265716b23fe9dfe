"""Which partition librdkafka puts a key into, computed here where it has to be known before.

murmur2 is Austin Appleby's MurmurHash2 with the seed of Kafka's Java client; without its sign, modulo the number of
partitions, it is what that client does. `consistent_random` is the crc32 that clients on librdkafka use by themselves.
"""

import random
import zlib
from collections.abc import Callable
from functools import lru_cache

from outbox.errors import ConfigurationError

DEFAULT = "murmur2_random"
Partitioner = Callable[[bytes | None, int], int]
_SEED, _FACTOR, _SHIFT, _MASK = 0x9747B28C, 0x5BD1E995, 24, 0xFFFFFFFF


def partitioner_of(name: str) -> Partitioner:
    """Return what gives the partition of a key (None without one) among so many.

    Raises:
        ConfigurationError: it cannot be computed here.
    """
    try:
        return _KNOWN[name]
    except KeyError:
        raise ConfigurationError(
            f"the log's partitioner={name!r}: write {DEFAULT}, which agrees with Java's clients, or one of"
            f" {', '.join(sorted(_KNOWN.keys() - {DEFAULT}))}"
        ) from None


@lru_cache(8_192)  # a topic whose keys leave a partition out is never primed whole
def murmur2(key: bytes) -> int:
    """Return the hash, from 0 up to 2**32."""
    whole = len(key) & ~3
    value = _SEED ^ len(key)
    for place in range(0, whole, 4):
        word = int.from_bytes(key[place : place + 4], "little") * _FACTOR & _MASK
        word = (word ^ word >> _SHIFT) * _FACTOR & _MASK
        value = value * _FACTOR & _MASK ^ word
    if whole < len(key):
        value = (value ^ int.from_bytes(key[whole:], "little")) * _FACTOR & _MASK
    value = (value ^ value >> 13) * _FACTOR & _MASK
    return value ^ value >> 15


def _murmur2(key: bytes | None, partitions: int) -> int:
    return (murmur2(key or b"") & 0x7FFFFFFF) % partitions


def _murmur2_random(key: bytes | None, partitions: int) -> int:
    return _random(key, partitions) if key is None else _murmur2(key, partitions)


def _consistent(key: bytes | None, partitions: int) -> int:
    return zlib.crc32(key or b"") % partitions


def _consistent_random(key: bytes | None, partitions: int) -> int:
    return _consistent(key, partitions) if key else _random(key, partitions)


def _random(_: bytes | None, partitions: int) -> int:
    return random.randrange(partitions)  # noqa: S311 - where it lies is no secret


_KNOWN: dict[str, Partitioner] = {
    "murmur2": _murmur2,
    "murmur2_random": _murmur2_random,
    "consistent": _consistent,
    "consistent_random": _consistent_random,
}
