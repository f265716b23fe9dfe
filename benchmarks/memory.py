"""P6: how much memory a relay needs over a whole drain."""

from collections.abc import Iterator
from statistics import median

from fetched import Missing

from benchmarks.ground import Ground, fill, fill_large, refuse_wrong_log
from benchmarks.measuring import Row, Sample
from benchmarks.moving import ENTRIES, fresh_name
from benchmarks.processes import measured
from benchmarks.producing import DELIVERIES, not_measured, relay_produces

MOST_BYTES = 150_000_000
LARGE = {100_000: 2_000, 900_000: 200}
"""Large payloads: bytes each, and how many."""


def p6(ground: Ground, scale: float, rounds: int) -> Iterator[Row]:  # noqa: ARG001 - one drain shows it
    """Memory of the relay over a whole drain, with small and with large payloads."""
    small, large = ground.database(), ground.database()
    entries = int(ENTRIES * scale)
    fill(small, entries)
    sizes = [size for size, number in LARGE.items() for _ in range(max(1, int(number * scale)))]
    fill_large(large, sorted(sizes, key=lambda size: hash((size, len(sizes)))))
    for what, database, amount in (
        (f"{entries:,} x 200 B", small, entries),
        (f"{len(sizes):,} of 100 kB and 900 kB", large, len(sizes)),
    ):
        for where, log in (("own database", database), ("another database", ground.database())):
            sample = measured(ground, amount, "relay", memory=True, database=database, log=log, name=fresh_name())
            refuse_wrong_log(log, amount)
            yield _memory_row(f"{what}, {where}", sample)
        yield from _with_kafka(ground, database, amount, what)
    ground.drop(small, large)


def _with_kafka(ground: Ground, database: str, amount: int, what: str) -> Iterator[Row]:
    try:
        broker = ground.broker()
    except Missing as missing:
        yield not_measured("P6", f"{what}, to Kafka", missing)
        return
    for delivery in DELIVERIES:
        sample = relay_produces(ground, broker, database, amount, delivery, memory=True)
        yield _memory_row(f"{what}, to Kafka {delivery.replace('-', ' ')}", sample)


def _memory_row(what: str, sample: Sample) -> Row:
    third = len(sample.resident_bytes) // 3
    first, last = (median(part) for part in (sample.resident_bytes[:third], sample.resident_bytes[-third:]))
    return Row(
        "P6",
        f"peak memory of the relay, {what}",
        f"{sample.peak_bytes / 1e6:.0f} MB",
        "",
        last / first,
        None,
        f"<= {MOST_BYTES / 1e6:.0f} MB, flat",
        sample.peak_bytes <= MOST_BYTES,
        {"first third MB": f"{first / 1e6:.0f}", "last third MB": f"{last / 1e6:.0f}"},
    )
