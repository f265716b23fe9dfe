"""What Kafka's adapters are tested on: a broker that is real, alone, and has its data again after a kill."""

import socket
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_server import KafkaServer

PATIENCE = 30


def new_topic(server: str, **more: str) -> str:
    topic = f"t-{uuid.uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": server, **more})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(PATIENCE)
    return topic


def produce(server: str, topic: str, value: str, **more: str) -> None:
    producer = Producer({"bootstrap.servers": server, "acks": "all", **more})
    producer.produce(topic, value)
    assert producer.flush(PATIENCE) == 0


def first_value(server: str, topic: str, **more: str) -> str:
    settings = {"bootstrap.servers": server, "group.id": topic, "auto.offset.reset": "earliest", **more}
    consumer = Consumer(settings)
    consumer.subscribe([topic])
    message = consumer.poll(PATIENCE)
    consumer.close()
    assert message is not None and message.error() is None
    value = message.value()
    assert value is not None
    return value.decode()


def address(url: str) -> str:
    return url.removeprefix("kafka://")


def test_the_shared_broker_takes_a_message_and_gives_it(kafka_url: str):
    server = address(kafka_url)
    topic = new_topic(server)
    produce(server, topic, "kept")
    assert first_value(server, topic) == "kept"


def test_a_broker_has_its_data_again_after_a_kill_and_after_a_stop(own_kafka_server: KafkaServer):
    server = address(own_kafka_server.url())
    topic = new_topic(server)
    produce(server, topic, "kept")
    for end in (own_kafka_server.kill, own_kafka_server.stop):
        end()
        assert not own_kafka_server.is_running()
        own_kafka_server.start()
        assert address(own_kafka_server.url()) == server
        assert first_value(server, topic, **{"group.id": f"{topic}-{end.__name__}"}) == "kept"


def test_a_broker_of_ones_own_may_ask_for_a_password(kafka_programs: Path, tmp_path: Path):
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    broker = KafkaServer(
        tmp_path,
        programs=kafka_programs,
        settings={
            "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.client.plain.sasl.jaas.config": (
                f'{login} username="broker" password="b" user_broker="b" user_app="secret";'
            ),
        },
    )
    known = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "app",
        "sasl.password": "secret",
    }
    server = address(broker.url())
    try:
        broker.start()
        topic = new_topic(server, **known)
        produce(server, topic, "kept", **known)
        assert first_value(server, topic, **known) == "kept"
    finally:
        broker.delete()


def test_two_brokers_know_nothing_of_each_other(kafka_url: str, own_kafka_server: KafkaServer):
    topic = new_topic(address(own_kafka_server.url()))
    there = AdminClient({"bootstrap.servers": address(kafka_url)}).list_topics(timeout=PATIENCE)
    assert topic not in there.topics


def test_a_broker_that_cannot_start_says_what_its_log_says(kafka_programs: Path, tmp_path: Path):
    server = KafkaServer(tmp_path, programs=kafka_programs)
    with socket.create_server(("127.0.0.1", server.port)):
        with pytest.raises(RuntimeError, match=r"Kafka ended as it started(.|\n)*Address already in use"):
            server.start()
        assert not server.is_running()
