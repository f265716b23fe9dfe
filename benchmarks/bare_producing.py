"""The limit of a relay to Kafka: fetch a chunk, make the same headers, produce; and nothing else.

Tuned as far as it goes: rows in the server's binary formats, chunks by the primary key, no report of what was taken,
five requests in flight, and no waiting for a chunk before the next.
"""

import psycopg
from confluent_kafka import Producer

from benchmarks.began import Began
from relay.logs.kafka.sending import SETTINGS
from relay.logs.kafka.topics import BATCH_BYTES
from relay.reader.contract import MOST_ENTRIES_PRODUCED

FETCH = (
    "select position, id::text, coalesce(source, '/outbox/11111111-2222-3333-4444-555555555555'), topic, key,"
    " case when type = '' then topic else type end, payload, content_type, headers,"
    """ to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
    " from outbox where position > %s order by position limit %s"
)
FULL_SECONDS = 0.1
FLUSH_SECONDS = 60.0


def bare_produces(database: str, servers: str) -> Began:
    """Produce all there is; return when it began."""
    with psycopg.connect(database, autocommit=True) as source:
        began = Began.now()
        producer = Producer(
            {
                **SETTINGS,
                "batch.size": BATCH_BYTES,
                "bootstrap.servers": servers,
                "log_level": 2,
                "enable.idempotence": True,
                "delivery.report.only.error": True,
            }
        )
        last = 0
        while rows := source.execute(FETCH, (last, MOST_ENTRIES_PRODUCED), binary=True).fetchall():
            for position, identity, origin, topic, key, kind, payload, content_type, own, created in rows:
                headers = {
                    "ce_specversion": "1.0",
                    "ce_id": identity,
                    "ce_source": origin,
                    "ce_type": kind,
                    "content-type": content_type,
                    "ce_relayepoch": "1",
                    "ce_time": created,
                    "ce_sequence": str(position).zfill(19),
                    "ce_partitionkey": key,
                }
                if own:
                    headers.update(own)
                try:
                    producer.produce(topic, payload, key, headers=headers)
                except BufferError:
                    producer.flush(FULL_SECONDS)
                    producer.produce(topic, payload, key, headers=headers)
            producer.poll(0)
            last = rows[-1][0]
        if producer.flush(FLUSH_SECONDS):
            raise RuntimeError(f"the broker has not taken all in {FLUSH_SECONDS:g} s")
        return began
