"""Messages follow rows: whatever is committed, released, rolled back or closed, and in whatever order.

The database is the oracle: in random scripts of steps on a Connection and on a Session that joined it, what survives of
the messages has to be what survives of the rows that were inserted at the same place.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session
from write_support import Base, Order, make_engine, orders, outbox, payloads

MODES = ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]
Act = Callable[[Any, int], None]


class Script:
    """Steps on a connection in a transaction, and on a session bound to it, or to the engine."""

    def __init__(self, engine: Engine, act: Act, mode: str | None) -> None:
        self.connection = engine.connect() if mode else None
        if self.connection is not None:
            self.connection.begin()
        self.session = Session(self.connection or engine, join_transaction_mode=mode or "conditional_savepoint")
        self.act = act
        self.number = 0
        self.savepoints: list[Any] = []

    def run(self, steps: list[str]) -> None:
        for step in steps:
            self.number += 1
            {**CONNECTION_STEPS, **SESSION_STEPS}[step](self)
        self.session.close()
        if self.connection is not None:
            self.connection.commit()

    def abandon(self) -> None:
        for target in (self.session, self.connection):
            with suppress(Exception):
                target.close()

    def innermost(self) -> Any:
        """The connection's innermost savepoint, if it is one of the script's and not the session's."""
        current = self.connection.get_nested_transaction()
        return current if current in self.savepoints else Nothing()

    def outermost(self) -> Any:
        return next((savepoint for savepoint in self.savepoints if savepoint.is_active), Nothing())

    def nested(self) -> Any:
        return self.session.get_nested_transaction() or Nothing()


class Nothing:
    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: None


CONNECTION_STEPS: Mapping[str, Callable[[Script], None]] = {
    "act on the connection": lambda script: script.act(script.connection, script.number),
    "row on the connection": lambda script: row(script.connection, -script.number),
    "open a savepoint": lambda script: script.savepoints.append(script.connection.begin_nested()),
    "release the innermost": lambda script: script.innermost().commit(),
    "roll back the innermost": lambda script: script.innermost().rollback(),
    "roll back the outermost": lambda script: script.outermost().rollback(),
    "commit the connection": lambda script: script.connection.commit(),
    "roll back the connection": lambda script: script.connection.rollback(),
}
SESSION_STEPS: Mapping[str, Callable[[Script], None]] = {
    "act in the session": lambda script: script.act(script.session, script.number),
    "row in the session": lambda script: row(script.session, -script.number),
    "nest the session": lambda script: script.session.begin_nested(),
    "commit the nested": lambda script: script.nested().commit(),
    "roll back the nested": lambda script: script.nested().rollback(),
    "close the nested": lambda script: script.nested().close(),
    "commit the session": lambda script: script.session.commit(),
    "roll back the session": lambda script: script.session.rollback(),
    "close the session": lambda script: script.session.close(),
}
JOINED_STEPS = [*CONNECTION_STEPS, *SESSION_STEPS]


def row(target: Any, number: int) -> None:
    target.execute(insert(Order).values(id=number))


def message(target: Any, number: int) -> None:
    outbox.write(target, topic="t", payload=str(number))


def row_then_message(target: Any, number: int) -> None:
    row(target, number)
    message(target, number)


def message_then_row(target: Any, number: int) -> None:
    message(target, number)
    row(target, number)


def survivors(steps: list[str], act: Act, mode: str | None) -> tuple[bool, list[str], list[str]]:
    """Run a script; return whether it came to its end, and the rows and messages that were committed."""
    engine = make_engine("sqlite://")
    Base.metadata.create_all(engine)
    script = Script(engine, act, mode)
    try:
        script.run(steps)
        came_to_its_end = True
    except Exception:
        came_to_its_end = False
    script.abandon()
    found = came_to_its_end, [str(number) for number in orders(engine) if number > 0], payloads(engine)
    engine.dispose()
    return found


random_scripts = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
quiet = pytest.mark.filterwarnings("ignore:.*already deassociated")


@quiet
@random_scripts
@given(
    steps=st.lists(st.sampled_from(JOINED_STEPS), max_size=14),
    act=st.sampled_from([row_then_message, message_then_row]),
    mode=st.sampled_from(MODES),
)
@example(["act in the session", "close the session"], message_then_row, "rollback_only")
@example(["act in the session", "close the session"], message_then_row, "create_savepoint")
@example(["open a savepoint", "act in the session", "close the session"], row_then_message, "conditional_savepoint")
@example(
    ["open a savepoint"] * 2 + ["act on the connection", "roll back the outermost"], row_then_message, "rollback_only"
)
@example(["open a savepoint", "act in the session", "release the innermost"], row_then_message, "control_fully")
def test_messages_survive_exactly_where_the_rows_beside_them_do(steps: list[str], act: Act, mode: str):
    """INVARIANT I1, I2: in every mode in which a session joins a connection, and however savepoints end."""
    _, rows, messages = survivors(steps, act, mode)
    assert messages == rows


@quiet
@random_scripts
@given(steps=st.lists(st.sampled_from([*SESSION_STEPS]), max_size=14))
@example(["nest the session", "act in the session", "roll back the nested", "commit the session"])
@example(["nest the session", "act in the session", "close the nested", "act in the session", "commit the session"])
@example(["nest the session", "nest the session", "act in the session", "commit the nested", "roll back the nested"])
def test_messages_alone_survive_exactly_where_rows_would(steps: list[str]):
    """INVARIANT I1, I2: with messages alone no SAVEPOINT is ever sent, and no connection is there before the commit."""
    rows_ended, rows, _ = survivors(steps, row, None)
    messages_ended, _, messages = survivors(steps, message, None)
    if rows_ended and messages_ended:
        assert messages == rows


@quiet
@random_scripts
@given(
    steps=st.lists(st.sampled_from([step for step in JOINED_STEPS if step != "nest the session"]), max_size=14),
    mode=st.sampled_from(["rollback_only", "control_fully"]),
)
@example(["act in the session", "commit the session", "roll back the connection"], "control_fully")
@example(["act on the connection", "act in the session", "roll back the session"], "rollback_only")
def test_messages_alone_join_the_connection_as_rows_would(steps: list[str], mode: str):
    """INVARIANT I1, I2: a session that only writes messages still ends the transaction that it joined."""
    rows_ended, rows, _ = survivors(steps, row, mode)
    messages_ended, _, messages = survivors(steps, message, mode)
    if rows_ended and messages_ended:
        assert messages == rows
