"""Says whether a saga that has come to rest is right, by plain SQL and, on Kafka, a plain consumer.

It shares no code with the toolkit, nor with the services: what it knows of them is their tables and their topics.

python -m examples.order_saga.check DATABASES LOG [at-least-once|exactly-once [TOPIC_PREFIX]]

DATABASES is a URL with {} for the name of a service: postgresql://postgres@127.0.0.1/{}
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from examples.order_saga.books import Books, Record, Rows, read

# How it stands with an order, in its own database and in the other three.
ENDS = {
    "shipped": {"payments": {"captured"}, "stock": {"handed over"}, "shipping": {"shipped"}},
    "cancelled": {
        "payments": {"declined", "refunded", "void"},
        "stock": {"missing", "released", "void"},
        "shipping": {"cancelled"},
    },
}
# What the services say of an order, in this order, by how it stands there at the end.
SAID: dict[str, dict[Any, list[str]]] = {
    "orders": {False: ["OrderPlaced"], True: ["OrderPlaced", "CancelRequested"]},  # by cancel_requested
    "payments": {
        "captured": ["PaymentCaptured"],
        "refunded": ["PaymentCaptured", "PaymentRefunded"],
        "declined": ["PaymentDeclined"],
        "void": [],
    },
    "stock": {
        "handed over": ["StockReserved"],
        "released": ["StockReserved", "StockReleased"],
        "missing": ["StockMissing"],
        "void": [],
    },
    "shipping": {"shipped": ["OrderShipped"], "cancelled": ["OrderCancelled"]},
}
# Which event of the same order made a service say something; these three nobody made them say.
CAUSES: dict[str, set[str | None]] = {
    "OrderPlaced": {None},
    "CancelRequested": {None},
    "OrderShipped": {None},
    "PaymentCaptured": {"OrderPlaced"},
    "PaymentDeclined": {"OrderPlaced"},
    "PaymentRefunded": {"OrderCancelled"},
    "StockReserved": {"OrderPlaced"},
    "StockMissing": {"OrderPlaced"},
    "StockReleased": {"OrderCancelled"},
    "OrderCancelled": {"CancelRequested", "PaymentDeclined", "StockMissing"},
}
REASONS = {
    "the customer's wish": "CancelRequested",
    "card declined": "PaymentDeclined",
    "out of stock": "StockMissing",
}


def findings(books: Books, *, exactly_once: bool) -> list[str]:
    """Return what is wrong, a line each; nothing if all is right."""
    return [
        *one_end(books),
        *each_once(books, books.bookings, "payments", ("customer", "amount")),
        *each_once(books, books.movements, "stock", ("item", "quantity")),
        *exact(books, books.cards, books.bookings, "amount"),
        *exact(books, books.shelves, books.movements, "quantity"),
        *all_sent(books, exactly_once=exactly_once),
        *sensible(books),
    ]


def one_end(books: Books) -> Iterator[str]:
    """Each order is shipped or cancelled, in all four services alike."""
    for order in books.orders:
        number, state = order["id"], order["state"]
        if state not in ENDS:
            yield f"order {number} has come to no end: {state}"
            continue
        for service, expected in ENDS[state].items():
            found = books.states[service].get(number)
            if found not in expected:
                yield f"order {number} is {state}, and {found} in {service}"
    known = {order["id"] for order in books.orders}
    for service, states in books.states.items():
        for number in sorted(states.keys() - known):
            yield f"{service} has order {number}, which was never placed"


def each_once(books: Books, ledger: Rows, service: str, fields: tuple[str, str]) -> Iterator[str]:
    """What was taken for an order, and what was given back, is right to the last unit, and was done once."""
    done: dict[int, list[tuple[Any, int]]] = defaultdict(list)
    for row in ledger:
        done[row["order_id"]].append((row["place"], row["moved"]))
    where, much = fields
    for order in books.orders:
        taken, back = (order[where], -order[much]), (order[where], order[much])
        match books.states[service].get(order["id"]):
            case "captured" | "reserved" | "handed over":
                expected = [taken]
            case "refunded" | "released":
                expected = [taken, back]
            case _:
                expected = []
        found = done.pop(order["id"], [])
        if found != expected:
            yield f"order {order['id']}: {service} has booked {found}, and not {expected}"
    for number, found in done.items():
        yield f"order {number}, which was never placed: {service} has booked {found}"


def exact(books: Books, places: Rows, ledger: Rows, much: str) -> Iterator[str]:
    """On each card and shelf is what was there at first, and what the ledger says; and what is gone was sold."""
    moved: Counter[Any] = Counter()
    for row in ledger:
        moved[row["place"]] += row["moved"]
    for row in places:
        if row["now"] != row["at_first"] + moved[row["place"]] or row["now"] < 0:
            yield f"{row['place']}: {row['at_first']} at first, {moved[row['place']]:+} in the ledger, {row['now']} now"
    gone = sum(row["at_first"] - row["now"] for row in places)
    sold = sum(order[much] for order in books.orders if order["state"] == "shipped")
    if gone != sold:
        yield f"{much}: {gone} in all is gone, and {sold} was sold"


def all_sent(books: Books, *, exactly_once: bool) -> Iterator[str]:
    """Each message of each outbox lies in the log, as it was written, and nothing else does."""
    found = Counter(record._replace(partition=0) for record in books.log)
    for record in books.written:
        times = found.pop(record, 0)
        if times == 0 or (exactly_once and times > 1):
            yield f"{told(record)} lies in the log {times} times"
    for record in found:
        yield f"{told(record)} lies in the log, and in no outbox"


def sensible(books: Books) -> Iterator[str]:
    """Each service has said of each order what it had to, in the right order, and each for the right reason."""
    by_id = {record.id: record for record in books.log}
    said: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in {record.id: record for record in reversed(books.log)}.values():  # first appearances, last one first
        said[record.source, record.key].insert(0, record)
    for order in books.orders:
        states: dict[str, Any] = {"orders": order["cancel_requested"]}
        states |= {service: ended.get(order["id"]) for service, ended in books.states.items()}
        for service, state in states.items():
            records = said.pop((f"/{service}", str(order["id"])), [])
            types = [record.type for record in records]
            if types != SAID[service].get(state):
                yield f"order {order['id']}: {service} said {types}, and it ends as {state}"
            if len({record.partition for record in records}) > 1:
                yield f"order {order['id']}: what {service} said lies in several partitions"
            for record in records:
                yield from caused(record, by_id.get(record.cause or ""), order["reason"])
    for (source, key), records in said.items():
        yield f"{source} spoke of order {key}, which was never placed: {[record.type for record in records]}"


def caused(record: Record, cause: Record | None, reason: str | None) -> Iterator[str]:
    """What was said was said because of another event of the same order, one that leads to it."""
    if (record.cause is None) != (cause is None) or (cause is not None and cause.key != record.key):
        yield f"{told(record)} names a cause that is no event of its order"
    elif (cause and cause.type) not in CAUSES[record.type]:
        yield f"{told(record)} is caused by {cause and told(cause)}"
    elif record.type == "OrderCancelled" and REASONS.get(reason or "") != (cause and cause.type):
        yield f"order {record.key} is cancelled for {reason}, and because of {cause and told(cause)}"


def told(record: Record) -> str:
    return f"{record.type} of order {record.key} ({record.id})"


@dataclass(frozen=True)
class Verdict:
    """What there was to check, and what was found."""

    books: Books
    wrong: list[str]

    def table(self) -> str:
        orders, waited = self.books.orders, self.books.waited
        ends = Counter(order["state"] for order in orders)
        reasons = Counter(order["reason"] for order in orders if order["state"] == "cancelled")
        too_late = sum(order["cancel_requested"] and order["state"] == "shipped" for order in orders)
        rows = {"orders": f"{len(orders):,}"}
        rows |= {f"  {end}": f"{count:,}" for end, count in sorted(ends.items(), reverse=True)}
        rows |= {f"    {reason}": f"{count:,}" for reason, count in sorted(reasons.items())}
        rows |= {"wish to cancel came too late": f"{too_late:,}"}
        for unit, gone, places in (("money", "captured", self.books.cards), ("pieces", "sold", self.books.shelves)):
            first, now = (sum(row[name] for row in places) for name in ("at_first", "now"))
            shown = {unit: first, f"  {unit} {gone}": first - now, f"  {unit} left": now}
            rows |= {name: f"{sum_ / 100:,.2f}" if unit == "money" else f"{sum_:,}" for name, sum_ in shown.items()}
        rows |= {"messages written": f"{len(self.books.written):,}", "records in the log": f"{len(self.books.log):,}"}
        rows |= {"order to shipped, p50": f"{waited[0]:.2f} s", "order to shipped, p99": f"{waited[1]:.2f} s"}
        return "\n".join(f"  {name:<32}{value:>12}" for name, value in rows.items())

    def words(self, most: int = 20) -> str:
        if not self.wrong:
            return "the check passes: each order has one end, each cent and piece is there, each message was sent"
        rest = [f"  and {len(self.wrong) - most} more"] if len(self.wrong) > most else []
        said = [f"THE CHECK FAILS, findings: {len(self.wrong)}", *(f"  {one}" for one in self.wrong[:most]), *rest]
        return "\n".join(said)


def check(databases: str, log: str, *, exactly_once: bool, topic_prefix: str = "") -> Verdict:
    """Read everything, and say what is wrong."""
    books = read(databases, log, topic_prefix)
    return Verdict(books, findings(books, exactly_once=exactly_once))


def main(databases: str, log: str, delivery: str = "exactly-once", topic_prefix: str = "") -> int:
    verdict = check(databases, log, exactly_once=delivery == "exactly-once", topic_prefix=topic_prefix)
    print(f"{verdict.table()}\n\n{verdict.words()}")
    return 1 if verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
