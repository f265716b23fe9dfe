"""Running the three commands as a user does: as subprocesses, in a folder of the user's."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OURS = ("OUTBOX_", "RELAY_", "INBOX_", "DATABASE_URL")


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left: exit code, data, talk."""

    code: int
    data: str
    talk: str

    def objects(self) -> list[dict[str, Any]]:
        """The data as a JSON list."""
        found: list[dict[str, Any]] = json.loads(self.data)
        return found

    def lines(self) -> list[dict[str, Any]]:
        """The data as one JSON object a line."""
        return [json.loads(line) for line in self.data.splitlines()]


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a folder and a database.

    Attributes:
        folder: where commands are run; handlers are modules in it.
        database: the URL; the built-in log lies in the same database.
    """

    folder: Path
    database: str

    def start(self, command: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        return subprocess.Popen(
            [str(Path(sys.executable).parent / command), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        )

    def run(self, command: str, *arguments: str, **environment: str) -> Ended:
        """Run a command to its end."""
        process = self.start(command, *arguments, **environment)
        data, talk = process.communicate(timeout=90)
        return Ended(process.returncode, data, talk)

    def relay_once(self, *arguments: str) -> Ended:
        """Run `relay run --once` with the built-in log."""
        return self.run("relay", "run", "--database", self.database, "--log", self.database, "--once", *arguments)

    def inbox_once(self, *arguments: str, handlers: str = "handlers:inbox") -> Ended:
        """Run `inbox run --once` with the built-in log."""
        road = ("--database", self.database, "--log", self.database)
        return self.run("inbox", "run", handlers, *road, "--once", *arguments)

    def handlers(self, body: str, group: str = "billing") -> None:
        """Write the module `handlers`."""
        head = f'from sqlalchemy import text\nfrom inbox import Inbox, Reject\n\ninbox = Inbox("{group}")\n\n\n'
        (self.folder / "handlers.py").write_text(head + body)
