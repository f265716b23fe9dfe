"""Kafka, as the suite has it: with records as an at-least-once relay writes them, and with transactions."""

import pytest
from kafka_road import KafkaRoad
from log_contract import LogContract
from log_contract_forget import ForgetContract
from log_contract_groups import GroupContract
from log_contract_tail import TailContract


@pytest.fixture(params=["plain", "transactional"])
def road(request: pytest.FixtureRequest, kafka_url: str) -> KafkaRoad:
    return KafkaRoad(kafka_url, transactional=request.param == "transactional")


class TestLog(LogContract):
    pass


class TestGroups(GroupContract):
    pass


class TestForget(ForgetContract):
    pass


class TestTail(TailContract):
    pass
