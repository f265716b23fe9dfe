import subprocess
import sys
from pathlib import Path

import local_kafka
import pytest
from fetched import Missing
from kafka_server import KafkaServer


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
