"""The travel saga: each turn of its state machine, what others may send it, and the demo on both stages."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from acceptance.demos import DEMO_SECONDS, ROOT, interrupted_demo
from databases import rows
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from examples.running import postgresql
from examples.travel_saga import check, orchestrator, saga, supplier
from examples.travel_saga.stage import SERVICES
from inbox import Inbox
from inbox.testing import Outcome, deliver
from outbox import correlate

DEMO = [sys.executable, "-m", "examples.travel_saga"]


class Service:
    """A service in its database, with messages handed to it as `inbox run` does."""

    def __init__(self, url: str, inbox: Inbox, topic: str) -> None:
        self.url = url
        self.engine: Engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        self.inbox = inbox
        self.topic = topic

    def hear(self, correlation: UUID | str, kind: str, payload: object, *, identity: UUID | None = None) -> Outcome:
        """Hand a message over; `payload` may be bytes as they come, or what JSON is made of."""
        with correlate(correlation_id=correlation), Session(self.engine) as session, session.begin():
            key, number = str(correlation), {"id": identity or uuid4()}
            return deliver(self.inbox, session=session, topic=self.topic, type=kind, key=key, payload=payload, **number)

    def sent(self) -> list[tuple[str, str]]:
        """Return topics and types of what was written, and forget it."""
        found = rows(self.url, "select topic, type from outbox order by position")
        rows(self.url, "delete from outbox")
        return found

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        return rows(self.url, question)


class Trips(Service):
    """The orchestrator."""

    def request(self, customer: str = "ada") -> UUID:
        with Session(self.engine) as session, session.begin():
            return saga.request(session, customer, "Lisbon").id

    def reply(self, trip: UUID | str, kind: str, by: str, **more: object) -> Outcome:
        return self.hear(trip, kind, {"supplier": by, "reason": "", **more})

    def up_to(self, *suppliers: str, customer: str = "ada") -> UUID:
        """Return a trip for which these suppliers have booked."""
        trip = self.request(customer)
        for one in suppliers:
            self.reply(trip, "Booked", one)
        self.sent()
        return trip

    def let_deadlines_pass(self) -> None:
        self.ask("update steps set deadline = now() - interval '1 second' where state = 'asked'")
        orchestrator.give_up_late_steps(self.engine)

    def state(self, trip: UUID) -> str:
        ((state,),) = rows(self.url, "select state from trips where id = ?", trip)
        return str(state)

    def steps(self) -> list[tuple[Any, ...]]:
        return self.ask("select supplier, state, late from steps order by number")

    def locks(self) -> list[tuple[Any, ...]]:
        return self.ask("select name, trip_id from customers where trip_id is not null")

    def strays(self) -> list[str]:
        return [why for (why,) in self.ask("select why from strays order by number")]


@pytest.fixture
def trips(postgresql_url: str) -> Iterator[Trips]:
    service = Trips(postgresql_url, orchestrator.inbox, "trips")
    orchestrator.Base.metadata.create_all(service.engine)
    yield service
    service.engine.dispose()


@pytest.fixture
def flights(postgresql_url: str) -> Iterator[Service]:
    service = Service(postgresql_url, supplier.inbox, "flights")
    supplier.Base.metadata.create_all(service.engine)
    service.ask("insert into offers values ('Lisbon', 2, 2), ('Oslo', 1, 0)")
    yield service
    service.engine.dispose()


def test_a_trip_is_booked_step_by_step(trips: Trips):
    trip = trips.request()
    assert trips.sent() == [("flights", "Book")]
    assert trips.locks() == [("ada", trip)]
    trips.reply(trip, "Booked", "flights")
    assert trips.sent() == [("hotels", "Book")]
    trips.reply(trip, "Booked", "hotels")
    assert trips.sent() == [("cars", "Book")]
    trips.reply(trip, "Booked", "cars")
    assert trips.sent() == []
    assert (trips.state(trip), trips.locks()) == ("booked", [])


def test_a_refusal_takes_back_what_was_booked_in_reverse_order_one_at_a_time(trips: Trips):
    trip = trips.up_to("flights", "hotels")
    trips.reply(trip, "Refused", "cars", reason="no cars left")
    assert trips.sent() == [("hotels", "Cancel")]
    assert (trips.state(trip), trips.locks()) == ("cancelling", [("ada", trip)])
    trips.reply(trip, "Cancelled", "hotels")
    assert trips.sent() == [("flights", "Cancel")]
    trips.reply(trip, "Cancelled", "flights")
    assert trips.sent() == []
    assert (trips.state(trip), trips.locks()) == ("cancelled", [])
    assert trips.ask("select reason from trips") == [("no cars left",)]


def test_a_refusal_of_the_first_step_ends_the_trip(trips: Trips):
    trip = trips.up_to()
    trips.reply(trip, "Refused", "flights", reason="none left")
    assert (trips.sent(), trips.state(trip), trips.locks()) == ([], "cancelled", [])


def test_further_trips_of_a_customer_wait_in_their_order_and_those_of_others_do_not(trips: Trips):
    first, second, third, other = trips.request(), trips.request(), trips.request(), trips.request("grace")
    assert [trips.state(one) for one in (first, second, third, other)] == ["booking", "waiting", "waiting", "booking"]
    trips.sent()
    trips.reply(first, "Refused", "flights", reason="none left")
    assert [trips.state(one) for one in (first, second, third)] == ["cancelled", "booking", "waiting"]
    assert trips.sent() == [("flights", "Book")]
    assert set(trips.locks()) == {("ada", second), ("grace", other)}


def test_a_trip_that_waited_begins_its_own_conversation_caused_by_the_reply(trips: Trips):
    first, second = trips.request(), trips.request()
    trips.sent()
    reply = uuid4()
    trips.hear(first, "Refused", {"supplier": "flights"}, identity=reply)
    ((headers,),) = trips.ask("select headers from outbox")
    assert headers == {"ce_correlationid": str(second), "ce_causationid": str(reply)}


def test_a_step_without_a_reply_is_given_up_and_the_others_are_taken_back_meanwhile(trips: Trips):
    trip = trips.up_to("flights", "hotels")
    trips.let_deadlines_pass()
    assert trips.sent() == [("cars", "Cancel"), ("hotels", "Cancel")]
    assert trips.ask("select reason from trips") == [("no reply from cars in time",)]
    trips.reply(trip, "Cancelled", "hotels")
    trips.reply(trip, "Cancelled", "flights")
    assert trips.sent() == [("flights", "Cancel")]
    assert (trips.state(trip), trips.locks()) == ("cancelling", [("ada", trip)]), "the car is in doubt"
    trips.reply(trip, "Cancelled", "cars")
    assert (trips.state(trip), trips.locks()) == ("cancelled", [])


@pytest.mark.parametrize("answer", ["Booked", "Refused"])
def test_a_late_reply_changes_nothing_because_its_cancel_is_on_its_way(trips: Trips, answer: str):
    trip = trips.up_to()
    trips.let_deadlines_pass()
    assert trips.sent() == [("flights", "Cancel")]
    trips.reply(trip, answer, "flights", reason="late")
    assert (trips.sent(), trips.state(trip)) == ([], "cancelling")
    trips.reply(trip, "Cancelled", "flights")
    assert trips.steps() == [("flights", "cancelled", answer == "Booked")]
    assert trips.state(trip) == "cancelled"


def test_a_late_success_is_no_booking_at_the_supplier(flights: Service):
    """The supplier reads both commands, however late, in the order in which they were written."""
    trip = uuid4()
    flights.hear(trip, "Book", {"destination": "Lisbon"})
    flights.hear(trip, "Cancel", {})
    assert flights.sent() == [("trips", "Booked"), ("trips", "Cancelled")]
    assert flights.ask("select state from bookings") == [("cancelled",)]
    assert flights.ask("select available from offers where destination = 'Lisbon'") == [(2,)]


def test_a_deadline_that_has_not_passed_is_none(trips: Trips):
    trip = trips.up_to()
    orchestrator.give_up_late_steps(trips.engine)
    assert (trips.sent(), trips.state(trip)) == ([], "booking")


def test_deadlines_leave_alone_a_trip_whose_reply_is_handled_at_this_moment(trips: Trips):
    """The job neither waits for the handler nor decides on what it saw before the handler's COMMIT."""
    trip = trips.up_to()
    with psycopg.connect(trips.url) as handler:
        handler.execute("select 1 from trips for update")
        trips.let_deadlines_pass()
        assert (trips.sent(), trips.state(trip)) == ([], "booking")
    trips.let_deadlines_pass()
    assert (trips.sent(), trips.state(trip)) == ([("flights", "Cancel")], "cancelling")


def test_a_reply_that_comes_twice_is_one(trips: Trips):
    trip, reply = trips.up_to(), uuid4()
    payload = {"supplier": "flights"}
    assert trips.hear(trip, "Booked", payload, identity=reply) is Outcome.HANDLED
    assert trips.hear(trip, "Booked", payload, identity=reply) is Outcome.DUPLICATE
    assert trips.hear(trip, "Booked", payload) is Outcome.HANDLED, "said again, in another message"
    assert trips.sent() == [("hotels", "Book")]
    assert (trips.steps(), trips.strays()) == ([("flights", "booked", False), ("hotels", "asked", False)], [])


@pytest.mark.parametrize(("kind", "answer"), [("Booked", [("flights", "Cancel")]), ("Refused", []), ("Cancelled", [])])
def test_a_reply_after_a_trip_was_cancelled_opens_nothing_and_leaves_no_booking(
    trips: Trips, kind: str, answer: list[tuple[str, str]]
):
    trip = trips.up_to("flights")
    trips.reply(trip, "Refused", "hotels")
    trips.reply(trip, "Cancelled", "flights")
    trips.sent()
    assert trips.reply(trip, kind, "flights") is Outcome.HANDLED
    assert (trips.sent(), trips.state(trip), trips.locks()) == (answer, "cancelled", [])


@pytest.mark.parametrize("kind", ["Booked", "Refused", "Cancelled"])
def test_a_reply_after_a_trip_was_booked_changes_nothing(trips: Trips, kind: str):
    trip = trips.up_to(*saga.SUPPLIERS)
    assert trips.reply(trip, kind, "hotels") is Outcome.HANDLED
    assert (trips.sent(), trips.state(trip), trips.locks()) == ([], "booked", [])


@pytest.mark.parametrize("trip", [UUID(int=7), "no uuid at all"])
def test_a_booking_of_a_trip_that_does_not_exist_is_kept_and_taken_back(trips: Trips, trip: UUID | str):
    assert trips.reply(trip, "Booked", "hotels") is Outcome.HANDLED
    assert trips.strays() == ["nobody asked for it"]
    ((topic, kind, key, headers),) = trips.ask("select topic, type, key, headers from outbox")
    assert (topic, kind, key, headers["ce_correlationid"]) == ("hotels", "Cancel", str(trip), str(trip))
    assert trips.reply(trip, "Cancelled", "hotels") is Outcome.HANDLED
    assert trips.reply(trip, "Refused", "hotels") is Outcome.HANDLED
    assert len(trips.strays()) == 3


def test_a_booking_that_was_not_asked_for_yet_is_taken_back(trips: Trips):
    trip = trips.up_to()
    trips.reply(trip, "Booked", "cars")
    assert trips.sent() == [("cars", "Cancel")]
    assert (trips.state(trip), trips.strays()) == ("booking", ["nobody asked for it"])


def test_a_newer_reply_with_more_fields_is_understood(trips: Trips):
    trip = trips.up_to()
    trips.reply(trip, "Booked", "flights", seat="12A", price={"amount": 100})
    assert trips.sent() == [("hotels", "Book")]


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("Booked", {}),
        ("Booked", {"supplier": 3}),
        ("Booked", {"supplier": "trains"}),
        ("Booked", b"\xff not json"),
        ("Booked", None),
        ("Upgraded", {"supplier": "flights"}),
    ],
)
def test_a_reply_that_nobody_understands_is_kept_and_holds_nobody_up(trips: Trips, kind: str, payload: object):
    trip = trips.up_to()
    assert trips.hear(trip, kind, payload) is Outcome.HANDLED
    assert (len(trips.strays()), trips.sent(), trips.state(trip)) == (1, [], "booking")
    ((kept,),) = trips.ask("select payload from strays")
    assert payload is None or kept
    trips.let_deadlines_pass()
    assert trips.sent() == [("flights", "Cancel")], "the deadline sees to the trip"


def test_an_offer_is_booked_until_none_is_left(flights: Service):
    for _ in range(3):
        flights.hear(uuid4(), "Book", {"destination": "Lisbon"})
    flights.hear(uuid4(), "Book", {"destination": "Atlantis"})
    assert [kind for _, kind in flights.sent()] == ["Booked", "Booked", "Refused", "Refused"]
    assert flights.ask("select available from offers where destination = 'Lisbon'") == [(0,)]


def test_a_reply_carries_on_the_correlation_id_and_names_the_command_as_its_cause(flights: Service):
    trip, command = uuid4(), uuid4()
    flights.hear(trip, "Book", {"destination": "Lisbon"}, identity=command)
    ((key, headers),) = flights.ask("select key, headers from outbox")
    assert (key, headers) == (str(trip), {"ce_correlationid": str(trip), "ce_causationid": str(command)})


def test_a_command_that_is_given_twice_is_carried_out_once_and_answered_twice(flights: Service):
    trip = uuid4()
    for kind in ("Book", "Book", "Cancel", "Cancel"):
        flights.hear(trip, kind, {"destination": "Lisbon"})
    assert [kind for _, kind in flights.sent()] == ["Booked", "Booked", "Cancelled", "Cancelled"]
    assert flights.ask("select offered, available from offers where destination = 'Lisbon'") == [(2, 2)]


def test_a_cancel_for_a_trip_without_booking_is_answered_and_forbids_one(flights: Service):
    trip = uuid4()
    flights.hear(trip, "Cancel", {})
    flights.hear(trip, "Book", {"destination": "Lisbon"})
    assert [kind for _, kind in flights.sent()] == ["Cancelled", "Refused"]
    assert flights.ask("select available from offers where destination = 'Lisbon'") == [(2,)]


@pytest.mark.parametrize(
    ("kind", "payload"),
    [("Book", {"city": "Lisbon"}), ("Book", b"\xff"), ("Book", None), ("Reserve", {"destination": "Lisbon"})],
)
def test_a_command_that_a_supplier_does_not_understand_is_refused(flights: Service, kind: str, payload: object):
    assert flights.hear(uuid4(), kind, payload) is Outcome.HANDLED
    assert flights.sent() == [("trips", "Refused")]
    assert flights.ask("select sum(available) from offers") == [(2,)]


def test_a_newer_command_with_more_fields_is_understood(flights: Service):
    flights.hear(uuid4(), "Book", {"destination": "Lisbon", "class": "business"})
    assert flights.sent() == [("trips", "Booked")]


@pytest.fixture
def databases(postgresql_server_url: str) -> Iterator[dict[str, str]]:
    """The databases of all services, with one trip that is booked."""
    with postgresql(*SERVICES, url=postgresql_server_url) as urls:
        for service, url in urls.items():
            engine = create_engine(url)
            (orchestrator.Base if service == "trips" else supplier.Base).metadata.create_all(engine)
            engine.dispose()
        plain = {service: url.replace("+psycopg", "") for service, url in urls.items()}
        trip = "insert into trips (id, customer, destination, state, began_at, ended_at)"
        rows(plain["trips"], f"{trip} values (?, 'ada', 'Rome', 'booked', now(), now() + interval '1 minute')", TRIP)
        rows(plain["trips"], "insert into customers values ('ada', null)")
        for one in saga.SUPPLIERS:
            rows(plain[one], "insert into offers values ('Rome', 5, 4)")
            rows(plain[one], "insert into bookings values (?, 'booked', 'Rome', '')", str(TRIP))
        yield plain


TRIP = UUID(int=1)
OTHER = "insert into trips (id, customer, destination, state, began_at, ended_at) values"
WRITTEN = "insert into outbox (topic, key, type, payload) values"


def test_what_adds_up_is_not_wrong(databases: dict[str, str]):
    found = check.check(databases)
    assert (found.wrong, found.booked, found.bookings_left) == ([], 1, 3)


@pytest.mark.parametrize(
    ("service", "statement", "wrong"),
    [
        ("hotels", "update bookings set state = 'cancelled'; update offers set available = 5", ["missing"]),
        ("trips", "update trips set state = 'cancelled'", ["orphaned"]),
        ("trips", "update trips set state = 'cancelling'", ["unfinished", "orphaned"]),
        ("cars", "update offers set available = 3", ["offers_wrong"]),
        ("trips", f"update customers set trip_id = '{TRIP}'", ["locks_left"]),
        ("trips", f"{OTHER} ('{UUID(int=2)}', 'ada', '', 'cancelled', now() + interval '9 s', now())", ["overlaps"]),
        ("trips", f"{WRITTEN} ('flights', 'k', 'Cancel', ''), ('cars', 'k', 'Cancel', '')", ["out_of_order"]),
        ("trips", f"insert into strays (message_id, type, why) values ('{TRIP}', '', '')", ["strays"]),
        ("hotels", f"{WRITTEN} ('trips', 'k', 'Booked', '')", ["without_cause"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_the_check_sees_each_fault(databases: dict[str, str], service: str, statement: str, wrong: list[str]):
    rows(databases[service], statement)
    assert sorted(check.check(databases).wrong) == sorted(wrong)


def test_every_count_of_the_check_is_looked_at():
    names = [one.name for one in fields(check.Verdict)]
    assert names[: names.index("unfinished")] == ["sagas", "booked", "bookings_left", "late"]


def played(**settings: str) -> str:
    """Run the demo, with its orchestrator killed and a supplier away for a while; return what it printed."""
    environment = {**os.environ, "TRIPS": "50", **settings}
    done = subprocess.run(
        DEMO, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEMO_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cars come back" in done.stdout
    assert "killed with SIGKILL; another one starts" in done.stdout
    assert done.stdout.endswith("every trip is booked as a whole, or not at all\n")
    late = re.search(r"bookings after a deadline, taken back +(\d+)", done.stdout)
    assert late
    assert int(late[1]) > 0
    assert re.search(r"cars: Booked -> \S*trips", done.stdout)
    return done.stdout


def test_the_demo_on_the_built_in_log(postgresql_server_url: str):
    """INVARIANT I4: an orchestrator that dies in the middle neither loses a reply nor acts on one twice."""
    assert played(STAGE="embedded", POSTGRESQL=postgresql_server_url).startswith("stage embedded")


def test_the_demo_on_kafka(postgresql_server_url: str, kafka_url: str):
    assert played(STAGE="kafka", POSTGRESQL=postgresql_server_url, KAFKA=kafka_url).startswith("stage kafka")


def test_a_stage_that_is_not_known_is_said_in_words():
    environment = {**os.environ, "STAGE": "moon"}
    done = subprocess.run(DEMO, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "STAGE=moon: it is one of embedded, kafka\n")


def test_the_demo_cleans_up_when_it_is_ended():
    interrupted_demo(DEMO, when="booking", number=signal.SIGTERM)


@pytest.fixture(autouse=True)
def nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests are not the example's."""
    for name in [name for name in os.environ if name.startswith(("OUTBOX_", "RELAY_", "INBOX_", "DATABASE_URL"))]:
        if not name.startswith("OUTBOX_TEST_"):
            monkeypatch.delenv(name)
    for name in ("STAGE", "KAFKA", "POSTGRESQL", "TRIPS", "TOPIC_PREFIX", "SUPPLIER", "REPLY_SECONDS"):
        monkeypatch.delenv(name, raising=False)
