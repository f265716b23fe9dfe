"""The accounts of the demo, in plain SQL: what was committed against what arrived."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

# An order at version 3 has had three committed transactions, and each of them wrote one event.
COMMITTED = "select id as order_id, generate_series(1, version) as version from orders"

# What the log holds, numbered as its readers see it: in the order of offsets, partition by partition.
IN_THE_LOG = """
    select (event ->> 'order_id')::int as order_id, (event ->> 'version')::int as version,
           row_number() over (order by "partition", "offset") as number
    from (select convert_from(payload, 'UTF8')::json as event, "partition", "offset" from log_record) as records
"""

# What billing did, numbered as it was done.
IN_BILLING = "select order_id, version, number from invoice_lines"

COUNT = "select count(*) from ({rows}) as counted"

LOST = f"""
    select count(*) from ({COMMITTED} except select order_id, version from ({{arrived}}) as arrived) as lost
"""

GHOSTS = f"""
    select count(*) from (select order_id, version from ({{arrived}}) as arrived except {COMMITTED}) as ghosts
"""

DOUBLED = "select count(*) - count(distinct (order_id, version)) from ({arrived}) as arrived"

OUT_OF_ORDER = """
    select count(*)
    from (
        select version, lag(version) over (partition by order_id order by number) as before from ({arrived}) as arrived
    ) as neighbours
    where version < before
"""

ATTEMPTS = "select case when is_called then last_value else 0 end from order_attempts"


@dataclass(frozen=True)
class Progress:
    """How far the road is travelled."""

    committed: int
    in_the_log: int
    billed: int

    @property
    def done(self) -> bool:
        return self.committed == self.in_the_log == self.billed


@dataclass(frozen=True)
class Accounts:
    """What the demo shows at its end. The last four are 0, or something is wrong."""

    committed: int
    rolled_back: int
    in_the_log: int
    billed: int
    ghosts: int
    lost: int
    doubled: int
    out_of_order: int

    @property
    def in_order(self) -> bool:
        return not (self.ghosts or self.lost or self.doubled or self.out_of_order)

    def table(self) -> str:
        rows = {
            "order transactions committed": self.committed,
            "rolled back": self.rolled_back,
            "messages in the log": self.in_the_log,
            "effects in billing": self.billed,
            "ghosts (rolled back, and yet sent)": self.ghosts,
            "lost": self.lost,
            "doubled": self.doubled,
            "out of order": self.out_of_order,
        }
        return "\n".join(f"  {name:<36}{number:>8,}" for name, number in rows.items())


def progress(connection: Connection) -> Progress:
    """Count what is on the road now."""
    committed = _number(connection, "select coalesce(sum(version), 0) from orders")
    in_the_log = _number(connection, "select count(*) from log_record")
    billed = _number(connection, "select count(*) from invoice_lines")
    return Progress(committed, in_the_log, billed)


def close_accounts(connection: Connection) -> Accounts:
    """Compare what was committed with what is in the log, and with what billing did."""
    committed = _number(connection, COUNT.format(rows=COMMITTED))
    return Accounts(
        committed=committed,
        rolled_back=_number(connection, ATTEMPTS) - committed,
        in_the_log=_number(connection, COUNT.format(rows=IN_THE_LOG)),
        billed=_number(connection, COUNT.format(rows=IN_BILLING)),
        ghosts=_in_log_and_billing(connection, GHOSTS),
        lost=_in_log_and_billing(connection, LOST),
        doubled=_in_log_and_billing(connection, DOUBLED),
        out_of_order=_in_log_and_billing(connection, OUT_OF_ORDER),
    )


def _in_log_and_billing(connection: Connection, question: str) -> int:
    return sum(_number(connection, question.format(arrived=arrived)) for arrived in (IN_THE_LOG, IN_BILLING))


def _number(connection: Connection, question: str) -> int:
    return int(connection.execute(text(question)).scalar_one())
