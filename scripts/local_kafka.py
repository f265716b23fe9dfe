"""The Kafka of `scripts/services`: one broker, in `.services/`, and its programs. Standard library only."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from fetched import CACHE, STATE, Missing, have_maven, maven
from kafka_server import KafkaServer, java_program
from postgresql_server import free_port, is_free

VERSION = "4.1"
RELEASE = "4.1.0"
SLF4J_RELEASE = "1.7.36"  # of the line that Kafka is built with
USUAL_PORT = 15_492
USUAL_CONTROLLER_PORT = 15_493
INSTALL = "install Java 17 or newer and Maven (Debian: apt-get install default-jre-headless maven)"

# Maven works out which jars belong to Kafka: it is asked for those that this project would need to run.
PROJECT = f"""\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId>
  <artifactId>kafka-programs</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{RELEASE}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>{SLF4J_RELEASE}</version>
    </dependency>
  </dependencies>
</project>
"""


class LocalKafka:
    """The local broker; its state is what lies in its folder, so that every process sees the same."""

    def __init__(self) -> None:
        self.name = f"kafka {VERSION}"
        self.folder = STATE / f"kafka-{VERSION}"
        self._port_file = self.folder / "port"

    def start(self, port: int | None = None) -> str:
        """Start the broker unless it runs; return its URL."""
        if self.is_running():
            self._server().start()  # by another process perhaps, a moment ago: wait until it answers
            return self.url()
        programs = programs_of_kafka()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._port_file.write_text(str(port or _free(USUAL_PORT)))
        self._server(programs, controller_port=_free(USUAL_CONTROLLER_PORT)).start()
        return self.url()

    def stop(self) -> None:
        """Stop the broker if it runs."""
        if self.is_running():
            self._server().stop()

    def is_running(self) -> bool:
        """Return whether the broker runs."""
        return self._port_file.exists() and self._server().is_running()

    def url(self) -> str:
        """Return its URL."""
        return self._server().url()

    def _server(self, programs: Path | None = None, controller_port: int | None = None) -> KafkaServer:
        port = int(self._port_file.read_text())
        # Nobody kills this one, and a machine that is busy for seconds should not cost it its session.
        settings = {"broker.session.timeout.ms": "9000", "broker.heartbeat.interval.ms": "2000"}
        return KafkaServer(
            self.folder, programs=programs, port=port, controller_port=controller_port, settings=settings
        )


def _free(usual: int) -> int:
    return usual if is_free(usual) else free_port()


def why_no_programs() -> str | None:
    """Say what keeps a broker from starting here at once, with nothing fetched; None if nothing does."""
    try:
        java_program()
    except FileNotFoundError as error:
        return f"{error}: {INSTALL}"
    return None if _programs().exists() else "no Kafka programs here (scripts/services start kafka fetches them)"


def programs_of_kafka() -> Path:
    """Return the folder of Kafka's jars, fetched once.

    Raises:
        Missing: there is no Java to run them, or they are not here and cannot be fetched.
    """
    try:
        java_program()
    except FileNotFoundError as error:
        raise Missing(f"Kafka {VERSION}: {error}: {INSTALL}") from None
    if not _programs().exists():
        if not have_maven():
            raise Missing(f"Kafka {VERSION}: no Maven (mvn), which fetches it: {INSTALL}")
        _fetch(_programs())
    return _programs()


def _programs() -> Path:
    return CACHE / f"kafka-{RELEASE}"


def _fetch(folder: Path) -> None:
    """Fetch the jars; the folder appears whole or not at all."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as beside:
        project, whole = Path(beside) / "pom.xml", Path(beside) / "programs"
        project.write_text(PROJECT)
        maven(
            f"Kafka {RELEASE}",
            "-f",
            str(project),
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
            f"-DoutputDirectory={whole}",
        )
        with contextlib.suppress(OSError):  # another process was first: its jars will do
            whole.rename(folder)
