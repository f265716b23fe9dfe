"""`inbox run MODULE:ATTR`: what it loads, and what it says when that is no Inbox."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inbox import Inbox
from inbox.loading import load_inbox, refuse_other_place
from outbox.errors import ConfigurationError
from outbox.tables import Place
from tests.unit.running import refused, run_here

HANDLERS = """
from inbox import Inbox

inbox = Inbox("billing")

class holder:
    inner = inbox
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory with modules in it, forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shop_handlers.py").write_text(HANDLERS)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("shop_"):
            del sys.modules[name]


@pytest.mark.parametrize("path", ["shop_handlers:inbox", "shop_handlers:holder.inner"])
def test_an_inbox_is_found_in_the_working_directory(path: str) -> None:
    assert isinstance(load_inbox(path), Inbox)


BROKEN = {
    "shop_handlers": "write MODULE:ATTR, as in app.handlers:inbox",
    ":inbox": "write MODULE:ATTR",
    "shop_handlers:": "write MODULE:ATTR",
    "no_such_module:inbox": "there is no module no_such_module: looked in ",
    "json.no_such:inbox": "there is no module json.no_such",
    "shop_handlers:inbx": "module shop_handlers has no attribute 'inbx'",
    "json:loads": "json:loads is a function, not an Inbox",
    "shop_needs:inbox": "module shop_needs cannot be imported: No module named 'shop_dependency'",
    "shop_fails:inbox": "module shop_fails fails while it is imported: ZeroDivisionError: division by zero",
    "shop_ends:inbox": "module shop_ends fails while it is imported: SystemExit: 3",
    "shop_syntax:inbox": "module shop_syntax fails while it is imported: SyntaxError: ",
    "..shop:inbox": "fails while it is imported: TypeError",
}


@pytest.mark.parametrize("path", BROKEN)
def test_what_is_no_inbox_is_said_in_one_line_and_exits_2(path: str, tmp_path: Path) -> None:
    (tmp_path / "shop_needs.py").write_text("import shop_dependency\n")
    (tmp_path / "shop_fails.py").write_text("1 / 0\n")
    (tmp_path / "shop_ends.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "shop_syntax.py").write_text("def inbox(:\n")
    refused(inbox("run", path, "--database", "sqlite:///x.db", "--log", "sqlite:///x.db"), 2, BROKEN[path])


def inbox(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_here("inbox", *arguments, **environment)


@pytest.mark.parametrize(
    ("place", "schema", "prefix"),
    [
        (Place(), None, None),
        (Place(), "", ""),
        (Place("events", "app_"), "events", "app_"),
        (Place("events"), None, None),
    ],
)
def test_options_that_say_the_same_as_the_inbox_are_fine(place: Place, schema: str | None, prefix: str | None) -> None:
    refuse_other_place(place, schema, prefix)
    assert (place.schema or "") == (schema or place.schema or "")


@pytest.mark.parametrize(
    ("place", "schema", "prefix", "words"),
    [
        (Place(), "events", None, "schema 'events', the Inbox 'none'"),
        (Place("events"), "other", None, "schema 'other', the Inbox 'events'"),
        (Place("events", "app_"), "events", "", "prefix '', the Inbox 'app_'"),
    ],
)
def test_options_that_say_otherwise_than_the_inbox_are_refused(
    place: Place, schema: str | None, prefix: str | None, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        refuse_other_place(place, schema, prefix)


def test_an_environment_that_says_otherwise_is_refused_too() -> None:
    arguments = ("run", "shop_handlers:inbox", "--database", "sqlite:///x.db", "--log", "sqlite:///x.db")
    refused(inbox(*arguments, OUTBOX_PREFIX="app_"), 2, "leave out --prefix (and OUTBOX_PREFIX)")


@pytest.mark.parametrize("concurrency", ["0", "-1", "10000", "many"])
def test_a_concurrency_that_cannot_be_exits_2(concurrency: str) -> None:
    where = ("--database", "sqlite:///x.db", "--log", "sqlite:///x.db", "--concurrency", concurrency)
    result = inbox("run", "shop_handlers:inbox", *where)
    assert result.returncode == 2
    assert "from 1 to 500" in result.stderr or "Invalid value for '--concurrency'" in result.stderr


def test_a_traceback_of_the_module_comes_with_debug(tmp_path: Path) -> None:
    (tmp_path / "shop_fails.py").write_text("1 / 0\n")
    result = inbox("run", "shop_fails:inbox", "--database", "sqlite:///x.db", "--log", "sqlite:///x.db", "--debug")
    assert result.returncode == 2
    assert "Traceback" in result.stderr and "shop_fails.py" in result.stderr
