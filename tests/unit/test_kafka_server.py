import subprocess
import sys
import uuid
from pathlib import Path

import local_kafka
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from fetched import Missing
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


def test_a_broker_of_ones_own_may_ask_for_a_password(own_kafka_server: KafkaServer):
    own_kafka_server.stop()
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    secured = KafkaServer(
        own_kafka_server.folder,
        programs=own_kafka_server.programs,
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
    server = address(secured.url())
    try:
        secured.start()
        topic = new_topic(server, **known)
        produce(server, topic, "kept", **known)
        assert first_value(server, topic, **known) == "kept"
    finally:
        secured.stop()


def test_a_broker_that_cannot_start_says_what_its_log_says(own_kafka_server: KafkaServer):
    own_kafka_server.stop()
    broken = KafkaServer(
        own_kafka_server.folder, programs=own_kafka_server.programs, settings={"num.io.threads": "none"}
    )
    with pytest.raises(RuntimeError, match=r"Kafka ended as it started(.|\n)*num\.io\.threads"):
        broken.start()
    assert not broken.is_running()


def test_another_process_that_got_the_recorded_number_is_not_the_broker(tmp_path: Path):
    server = KafkaServer(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / "server.pid").write_text(str(other.pid))
        assert not server.is_running()
        server.stop()
        server.kill()
        assert other.poll() is None
        other.communicate(b"\n")
    assert other.returncode == 0


@pytest.mark.parametrize("told", ['openjdk version "11.0.2" 2019', 'java version "1.8.0_292"', "no runtime"])
def test_without_a_java_that_is_new_enough_the_words_say_what_to_install(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho '{told}' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(Missing, match=r"no Java 17, only .* install Java 17 or newer and Maven"):
        local_kafka.programs_of_kafka()


def test_without_java_the_words_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="no Java 17: install Java 17 or newer and Maven"):
        local_kafka.programs_of_kafka()
    assert "no Java 17" in (local_kafka.why_no_programs() or "")


def test_without_maven_the_words_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local_kafka, "java_program", lambda: "java")
    monkeypatch.setattr(local_kafka, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match=r"no Maven \(mvn\).* install Java 17 or newer and Maven"):
        local_kafka.programs_of_kafka()
    assert "scripts/services start kafka" in (local_kafka.why_no_programs() or "")


def test_programs_that_were_fetched_in_part_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(_what: str, *arguments: str) -> None:
        folder = Path(arguments[-1].removeprefix("-DoutputDirectory="))
        folder.mkdir()
        (folder / "kafka-clients.jar").write_bytes(b"")
        raise Missing("the network went away")

    monkeypatch.setattr(local_kafka, "java_program", lambda: "java")
    monkeypatch.setattr(local_kafka, "have_maven", lambda: True)
    monkeypatch.setattr(local_kafka, "CACHE", tmp_path)
    monkeypatch.setattr(local_kafka, "maven", interrupted)
    with pytest.raises(Missing, match="the network went away"):
        local_kafka.programs_of_kafka()
    assert not list(tmp_path.iterdir())
