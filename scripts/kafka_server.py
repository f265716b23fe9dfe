"""Runs one Kafka broker of one's own: for tests and `scripts/services`. Standard library only.

One process is the broker and its controller (KRaft), on loopback ports. It needs Java, and a folder of Kafka's jars
(`local_kafka.programs_of_kafka` fetches them).
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from postgresql_server import free_port, is_free

JAVA_VERSION = 17
START_SECONDS = 60
STOP_SECONDS = 20
STARTED = "Kafka Server started"

# It is to start fast and stay small. The full compiler pays for itself only after minutes of load.
JAVA_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xshare:auto")
LOG_OPTIONS = tuple(
    f"-Dorg.slf4j.simpleLogger.{name}"
    for name in (
        "showDateTime=true",
        "dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
        "defaultLogLevel=warn",  # it says so much of its starting and stopping that the reason of a failure is lost
        "log.kafka.server.KafkaRaftServer=info",  # STARTED
        "log.kafka.coordinator=info",  # transactions
        "log.org.apache.kafka.coordinator.group=info",  # who joins, who leaves
    )
)
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "CLIENT",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.min.isr": "1",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",  # tests wait for timed out transactions
    # After a kill the controller lets the broker in once its last session is over: with Kafka's 9 s a start takes 12 s.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "250",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": "4194304",  # 128 MB of the heap otherwise
}


def new_cluster() -> str:
    """Return an id for a cluster."""
    encoded = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return f"k{encoded[1:]}"  # one that began with - would be taken for an option


def java_program() -> str:
    """Return the Java to run with: that of JAVA_HOME, or the one on the path.

    Raises:
        FileNotFoundError: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if java is None:
        raise FileNotFoundError(f"no Java {JAVA_VERSION}" + (f" in JAVA_HOME ({home})" if home else ""))
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < JAVA_VERSION:
        raise FileNotFoundError(f"no Java {JAVA_VERSION}, only {version[0] if version else 'one that does not run'}")
    return java


class KafkaServer:
    """A broker in a folder of its own, on loopback ports; a start after a stop or a kill finds its data again.

    `settings` are lines of server.properties, beside SETTINGS or in their place. The clients' listener is named CLIENT:
    `listener.security.protocol.map` and `listener.name.client.*` are how it asks for a password. Brokers with the same
    `cluster` (`new_cluster`), and each other's controllers in `controller.quorum.voters`, are one cluster.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        programs: Path | None = None,
        port: int | None = None,
        controller_port: int | None = None,
        settings: dict[str, str] | None = None,
        java_options: tuple[str, ...] = JAVA_OPTIONS,
        cluster: str | None = None,
    ) -> None:
        self.programs = programs and programs.resolve()
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="kafka-"))).resolve()
        self.port = port or free_port()
        self.controller_port = controller_port or free_port()
        self.settings = {
            **SETTINGS,
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            "listeners": f"CLIENT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"CLIENT://127.0.0.1:{self.port}",
            "log.dirs": str(self.data),
            **(settings or {}),
        }
        self._java_options = java_options
        self._cluster = cluster or new_cluster()
        self._process: subprocess.Popen[bytes] | None = None  # when this object started it

    def url(self) -> str:
        """Return the URL of the broker."""
        return f"kafka://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        """Return the data folder."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """Return the broker's log file."""
        return self.folder / "server.log"

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "server.pid"

    def start(self) -> KafkaServer:
        """Make the data folder if there is none, start the broker and wait until it answers.

        Raises:
            FileNotFoundError: there is no Java to run it.
            RuntimeError: it ended, or did not answer in time; the end of its log is in the words.
        """
        if self.is_running():
            self._wait_until(lambda: not is_free(self.port), 0)
            return self
        java = java_program()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in self.settings.items()))
        if not (self.data / "meta.properties").exists():
            self._format(java)
        with self.log.open("ab") as log:
            said_before = log.tell()
            self._process = subprocess.Popen(
                self._command(java, "kafka.Kafka", str(self._properties)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,  # it outlives us, and a Ctrl-C at our terminal is not for it
            )
        self._pid_file.write_text(str(self._process.pid))
        try:
            # The log says so once its controller knows the broker; the port is open before, and answers without it.
            self._wait_until(lambda: STARTED in self._log_from(said_before), said_before)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """Stop the broker in good order, and wait until it is gone; one that does not go in time is killed."""
        if not self._send(signal.SIGTERM):
            return
        self._send(signal.SIGCONT)  # one that is paused would not hear
        if not self._is_gone_within(STOP_SECONDS):
            self.kill()

    def kill(self) -> None:
        """End the broker as a crash would (SIGKILL), and wait until it is gone."""
        if self._send(signal.SIGKILL) and not self._is_gone_within(STOP_SECONDS):
            raise RuntimeError(f"Kafka in {self.folder} does not end")

    def pause(self) -> None:
        """Stop the broker from running (SIGSTOP), as a hanging host would."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again."""
        self._send(signal.SIGCONT)

    def delete(self) -> None:
        """Kill the broker and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_running(self) -> bool:
        """Return whether the broker's process lives."""
        return self._pid() is not None

    def _pid(self) -> int | None:
        """Return the broker's process: our own child, or the one recorded, if its command line is still a broker's.

        The system gives the numbers of processes again. A child is asked for because it cannot be mistaken, and because
        its command line is empty for a moment at its start, and after its end until it is asked for.
        """
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if str(self._properties) in _command_of(pid) else None

    def _send(self, number: signal.Signals) -> bool:
        """Send a signal; return whether there was a process to send it to."""
        pid = self._pid()
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def _is_gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _wait_until(self, answers: Callable[[], bool], said_before: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if not self.is_running():
                raise RuntimeError(f"Kafka ended as it started:\n{self._log_from(said_before)[-3000:]}")
            if time.monotonic() > deadline:
                words = f"Kafka did not answer within {START_SECONDS} s"
                raise RuntimeError(f"{words}:\n{self._log_from(said_before)[-3000:]}")
            time.sleep(0.02)

    def _log_from(self, position: int) -> str:
        with self.log.open("rb") as log:
            log.seek(position)
            return log.read().decode(errors="replace")

    def _format(self, java: str) -> None:
        arguments = ("format", "--ignore-formatted", "-t", self._cluster, "-c", str(self._properties))
        done = subprocess.run(
            self._command(java, "kafka.tools.StorageTool", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"Kafka's data folder could not be made: {done.stdout[-3000:]}")

    def _command(self, java: str, program: str, *arguments: str) -> list[str]:
        if self.programs is None:
            raise RuntimeError("Kafka's programs were not given: programs=local_kafka.programs_of_kafka()")
        return [java, *self._java_options, *LOG_OPTIONS, "-cp", f"{self.programs}/*", program, *arguments]


def _command_of(pid: int) -> str:
    """Return the command line of a process; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        if Path("/proc/self/cmdline").exists():
            return ""
    asked = ["ps", "-ww", "-o", "command=", "-p", str(pid)]  # no /proc on macOS
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout
