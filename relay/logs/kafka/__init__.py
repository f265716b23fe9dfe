"""`kafka://host:9092,host2?acks=all&...`: Kafka, or what speaks its protocol.

Settings of librdkafka pass through, from the URL or from a file that it names. The parts: `address` reads
the URL, `client` makes the clients, `cluster` asks the brokers, `producer` and `transactions` are a relay's hand,
`consumer` is a group member's.
"""

from relay.logs.kafka.log import KafkaLog
from relay.logs.kafka.log import open_kafka as open  # noqa: A004 - the name that every adapter's opener has

__all__ = ["KafkaLog", "open"]
