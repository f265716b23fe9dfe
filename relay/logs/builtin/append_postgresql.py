"""The append on PostgreSQL, whatever the chunk comes from: a query over the outbox beside it, or a staging table.

One simple-query message: the log's lock, then one statement that reads the chunk, draws offsets, inserts the records
and the next step of a journal (the relay's own, or the log's journal of chunk numbers); the server commits when both
went through. So no client, however slow or stopped, holds a lock of the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from outbox.errors import Fenced, Retryable
from outbox.process.postgresql import Connection, execute, translated
from outbox.tables import Place

PARTITION = (
    "(('x' || substr(md5(convert_to(coalesce(chunk.key, chunk.id::text), 'UTF8')), 1, 8))::bit(32)::bigint"
    " %% log_topic.partitions)::int"
)
"""The first four bytes of the md5 of the key's UTF-8, big-endian, modulo partitions; the same as `partition_of`."""


@dataclass(frozen=True, slots=True)
class Append:
    """What is to be appended, and the step that goes with it; neither side knows the other's tables.

    Attributes:
        select: the chunk; gives position, id, source, topic, key, type, payload, content_type, headers, created_at.
        current: the SELECT that locks the journal's step; known as `cur`, with its epoch.
        following: the INSERT of the next step, from `SOURCE`: `cur` and `tally` (entries, last), where `WHERE` holds.
        parameters: what they bind.
        source: the source of entries that have none.
        fit: a condition over `cur` and `tally` under which the chunk is stored.
        end: what ends a transaction that was begun before, if one was.
    """

    select: str
    current: str
    following: str
    parameters: Mapping[str, object]
    source: str
    fit: str = "tally.entries > 0"
    end: str = ""


@dataclass(frozen=True, slots=True)
class Appended:
    """What came of an append. Nothing is stored when the chunk is not fit, topics are missing or one is at fault.

    Attributes:
        entries: how many the chunk had.
        step: the journal's new row; None when nothing is stored.
        missing: topics that the log does not have yet.
        fault: (id, topic, position) of the first entry whose headers are no JSON object.
    """

    entries: int
    step: Mapping[str, Any] | None
    missing: tuple[str, ...]
    fault: tuple[UUID, str, int] | None


SOURCE = "cur cross join tally"
WHERE = "exists (select from fit)"
"""From where, and when, `following` inserts the next step."""


def append(connection: Connection, place: Place, work: Append) -> Appended:
    """Append a chunk and the journal's next step, both or neither.

    Raises:
        Fenced: the step is no longer the newest.
        TimedOut: the lock or the append took too long; nothing is stored.
        Retryable: unknown outcome; take the lease again, which settles it.
    """
    with translated():
        cursor = execute(connection, _message(place, work), {**work.parameters, "default_source": work.source})
        cursor.nextset()
        row = cursor.fetchone()
    if row is None:
        raise Retryable("the database gave no answer to an append")
    if not row["held"]:
        raise Fenced("another process has taken the lease")
    fault = None if row["fault"] is None else (row["fault_id"], row["fault_topic"], row["fault"])
    return Appended(row["entries"], row["step"], tuple(row["missing"] or ()), fault)


def _message(place: Place, work: Append) -> str:
    record, topic = place.sql("log_record"), place.sql("log_topic")
    # By a statement of its own: the append behind it sees the newest offsets in a fresh snapshot. Locked, never
    # updated.
    lock = f"select single from {place.sql('log_identity')} where single = 1 for update"
    # Order comes from data dependencies alone: CTEs run in no promised order.
    statement = f"""
    with cur as ({work.current}),
    chunk as materialized (
      select chunk.*, log_topic.topic_id, {PARTITION} as partition
      from ({work.select}) as chunk left join {topic} as log_topic on log_topic.name = chunk.topic
    ),
    tally as (
      select count(*) as entries, max(position) as last, count(*) filter (where topic_id is null) as unknown,
        min(position) filter (where headers is not null and json_typeof(headers) <> 'object') as fault
      from chunk
    ),
    fit as (select from cur cross join tally where unknown = 0 and fault is null and {work.fit}),
    heads as materialized (
      select touched.topic_id, touched.partition, coalesce((
        select r."offset" + 1 from {record} as r
        where r.topic_id = touched.topic_id and r.partition = touched.partition order by r."offset" desc limit 1
      ), 0) as head
      from (select distinct topic_id, partition from chunk where topic_id is not null) as touched
    ),
    stored as (
      insert into {record} (topic_id, partition, "offset", sequence, epoch, id, source, key, type, content_type, time,
        headers, payload)
      select chunk.topic_id, chunk.partition,
        heads.head - 1 + row_number() over (partition by chunk.topic_id, chunk.partition order by chunk.position),
        chunk.position, cur.epoch, chunk.id, coalesce(chunk.source, %(default_source)s), chunk.key,
        coalesce(nullif(chunk.type, ''), chunk.topic), chunk.content_type, chunk.created_at,
        chunk.headers, chunk.payload
      from cur cross join chunk join heads using (topic_id, partition)
      where {WHERE}
      returning 1
    ),
    next_step as ({work.following}),
    counted as (
      select tally.*, (select count(*) from stored) as records, (select count(*) from next_step) as steps,
        exists (select from cur) as held, {WHERE} as fit
      from tally
    )
    select entries, held, (select row_to_json(next_step) from next_step) as step,
      case when unknown > 0 then (select array_agg(distinct topic) from chunk where topic_id is null) end as missing,
      fault, case when fault is not null then (select id from chunk where position = fault) end as fault_id,
      case when fault is not null then (select topic from chunk where position = fault) end as fault_topic,
      1 / (case when fit then (records = entries and steps = 1)::int else (records + steps = 0)::int end) as checked
    from counted
    """
    return f"{lock};{statement}{work.end}"


def make_topics(
    connection: Connection, place: Place, names: tuple[str, ...], partitions: int, retain_seconds: int | None
) -> None:
    """Make topics that do not exist, in a transaction of its own; the number of partitions is fixed then."""
    with translated():
        execute(
            connection,
            f"insert into {place.sql('log_topic')} (name, partitions, retain_seconds)"
            " select name, %(partitions)s, %(retain)s from unnest(%(names)s::text[]) as name order by name"
            " on conflict (name) do nothing",
            {"names": list(names), "partitions": partitions, "retain": retain_seconds},
        )
