"""What Kafka's errors mean for us: mapped once, by their codes."""

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from outbox.errors import ConfigurationError, Fenced, OutboxError, Permanent, Retryable, Unreachable

_FENCED = frozenset(
    {
        KafkaError._FENCED,  # noqa: SLF001 - librdkafka's own codes are named so
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.PRODUCER_FENCED,
    }
)
_AWAY = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
        KafkaError._AUTHENTICATION,  # noqa: SLF001
        KafkaError._RESOLVE,  # noqa: SLF001
        KafkaError._SSL,  # noqa: SLF001
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._TIMED_OUT_QUEUE,  # noqa: SLF001
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
DROPPED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})  # noqa: SLF001
"""What a client says of messages that it does not send, because of something else."""
TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_MSG_SIZE})
UNKNOWN_TOPIC = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    }
)
_REMEDIES = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the relay's user may not write to the topic: grant it WRITE and DESCRIBE",
    KafkaError.TOPIC_EXCEPTION: "the brokers do not allow this topic",
    KafkaError.INVALID_RECORD: "the brokers refuse the record; a compacted topic wants a key on each",
    KafkaError.INVALID_TIMESTAMP: "the brokers refuse the record's time: see the topic's message.timestamp settings",
    KafkaError.POLICY_VIOLATION: "a policy of the brokers refuses the record",
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT: "the topic's message format is too old for record headers",
    **dict.fromkeys(TOO_LARGE, "it is larger than the brokers allow: see the topic's max.message.bytes"),
    **dict.fromkeys(
        UNKNOWN_TOPIC,
        "the topic does not exist and the brokers do not make topics by themselves: make it, or let the relay make"
        " what is missing by ?partitions=8&replication=3 in --log",
    ),
}


def is_permanent(error: KafkaError) -> bool:
    """Return whether a message that was refused so would be refused again: the message itself is at fault."""
    return error.code() in _REMEDIES


def remedy_of(code: int) -> str:
    """Return what to do about a permanent error."""
    return _REMEDIES[code]


def words_of(error: KafkaError) -> str:
    """Return what is wrong, and what to do about it where we know."""
    said = f"{error.name()}: {error.str()}"
    remedy = _REMEDIES.get(error.code())
    return f"{said} ({remedy})" if remedy else said


def ours(error: KafkaError, doing: str, why: str | None = None) -> OutboxError:
    """Return the error as one of ours.

    Args:
        error: what the client said.
        doing: what it was to do, in words.
        why: what the connections said meanwhile: the client itself only knows that it got no answer.
    """
    words = f"{doing}: {words_of(error)}{f'; {why}' if why else ''}"
    if error.code() in _FENCED:
        return Fenced(words)
    if error.code() in _AWAY:
        return Unreachable(words)
    if error.code() == KafkaError._INVALID_ARG:  # noqa: SLF001
        return ConfigurationError(words)
    return Permanent(words) if is_permanent(error) else Retryable(words)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn the client's exceptions into errors of ours."""
    try:
        yield
    except KafkaException as error:
        raise ours(error.args[0], doing) from error
