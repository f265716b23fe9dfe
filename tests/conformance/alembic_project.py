"""A user's project with Alembic, as `alembic init` makes it; only the metadata and the URL are filled in."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MODELS = """
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from inbox import Inbox
from outbox import Outbox, log_tables


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={convention!r})


class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(unique=True)

"""
OUTBOX = "Outbox(metadata=Base.metadata, schema={schema!r}, prefix={prefix!r})\n"
INBOX = "Inbox('billing', metadata=Base.metadata, schema={schema!r}, prefix={prefix!r})\n"
LOG = "log_tables(Base.metadata, schema={schema!r}, prefix={prefix!r})\n"
SETS = {"outbox": OUTBOX, "inbox": INBOX, "log": LOG}
CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# One process for several commands, because most of the time goes into starting.
RUN = """
import json, sys
from alembic.config import main
for arguments in json.loads(sys.argv[1]):
    main(argv=arguments)
"""
_FRESH: dict[tuple[str, ...], Path] = {}
"""What `alembic init` made, by template and versions."""


@dataclass
class Project:
    """A folder with `alembic.ini`, `env.py` and `models.py`.

    Attributes:
        url: of the database, as the application names it.
        options: what `env.py` gives to `context.configure`, beside what the template has.
        path: folders that come first on the path of modules: other versions of libraries.
    """

    folder: Path
    url: str
    sets: Sequence[str] = tuple(SETS)
    schema: str | None = None
    prefix: str = ""
    convention: Mapping[str, str] | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    path: Sequence[str] = ()
    template: str = "generic"

    def make(self) -> "Project":
        """Run `alembic init`, and fill in what every user has to."""
        fresh = _FRESH.setdefault((self.template, *self.path), self.folder.with_name(self.folder.name + "-fresh"))
        if not fresh.exists():
            fresh.mkdir()
            replace(self, folder=fresh).run(["init", "--template", self.template, "migrations"])
        shutil.copytree(fresh, self.folder)
        self._set("alembic.ini", r"^sqlalchemy\.url = .*$", f"sqlalchemy.url = {self.url}")
        self.target("from models import Base\n\ntarget_metadata = Base.metadata")
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        self._set("migrations/env.py", r"target_metadata=target_metadata", f"target_metadata=target_metadata{options}")
        place = {"schema": self.schema, "prefix": self.prefix}
        self.models(MODELS.format(convention=self.convention) + "".join(SETS[one].format(**place) for one in self.sets))
        return self

    def models(self, text: str) -> None:
        """Write the application's models."""
        (self.folder / "models.py").write_text(text)

    def target(self, lines: str) -> None:
        """Write which metadata Alembic compares with."""
        self._set("migrations/env.py", r"^target_metadata = .*$", lines)

    def run(self, *commands: Sequence[str]) -> str:
        """Run Alembic commands, warnings being errors; return what they said."""
        done = self.tried(*commands)
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def tried(self, *commands: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run Alembic commands, and return how that ended."""
        return self.python("-c", RUN, json.dumps(commands))

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the project's folder, warnings being errors."""
        path = os.pathsep.join([*self.path, str(ROOT)])
        return subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def migrations(self) -> list[str]:
        """Return the texts of the migrations that were generated, the oldest first."""
        files = (self.folder / "migrations" / "versions").glob("*.py")
        return [file.read_text() for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)]

    def _set(self, name: str, pattern: str, text: str) -> None:
        file = self.folder / name
        before = file.read_text()
        after, count = re.subn(pattern, lambda _: text, before, flags=re.MULTILINE)
        assert count, f"{name} has nothing like {pattern}"
        file.write_text(after)
