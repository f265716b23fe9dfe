"""The tests' own ground: which servers take part, and that a missing one cannot go unnoticed where it is required."""

import psycopg
import pytest

from tests import backends


def test_each_version_is_the_version_it_says(each_postgresql_url: str, request: pytest.FixtureRequest):
    with psycopg.connect(each_postgresql_url) as connection:
        version = connection.info.server_version // 10_000
    assert backends.name_of(version) in request.node.name


def test_a_required_backend_that_is_missing_stops_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "named_postgresql", lambda _: None)
    monkeypatch.setenv("OUTBOX_TEST_REQUIRE", "all")
    with pytest.raises(pytest.UsageError, match="scripts/services start postgresql"):
        backends.refuse_if_missing()


def test_a_required_broker_that_is_missing_stops_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "kafka", lambda: None)
    monkeypatch.setenv("OUTBOX_TEST_REQUIRE", "sqlite,kafka")
    with pytest.raises(pytest.UsageError, match="scripts/services start kafka"):
        backends.refuse_if_missing()


def test_a_backend_that_is_not_required_may_be_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "named_postgresql", lambda _: None)
    monkeypatch.setattr(backends, "kafka", lambda: None)
    monkeypatch.setenv("OUTBOX_TEST_REQUIRE", f"sqlite,{backends.name_of(backends.main_version())}")
    backends.refuse_if_missing()


def test_a_misspelt_requirement_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OUTBOX_TEST_REQUIRE", "postgres")
    with pytest.raises(pytest.UsageError, match="known are"):
        backends.refuse_if_missing()


def test_a_test_without_its_backend_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OUTBOX_TEST_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="kafka: not running"):
        backends.skip_or_fail(backends.KAFKA, backends.why_kafka_is_absent())


def test_a_test_without_a_backend_that_is_required_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OUTBOX_TEST_REQUIRE", "kafka")
    with pytest.raises(pytest.fail.Exception, match="kafka is missing: not running"):
        backends.skip_or_fail(backends.KAFKA, backends.why_kafka_is_absent())


def test_a_broker_that_is_named_comes_before_the_one_that_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OUTBOX_TEST_KAFKA", "kafka://broker.example:9092")
    assert backends.kafka() == "kafka://broker.example:9092"
