"""What commands say: one line an event, no password, and how they end."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from outbox.errors import ConfigurationError, Fenced, Forgotten, MessageAtFault, OutboxError, Retryable, Unreachable
from outbox.process import passwords
from outbox.process.exits import exit_code
from outbox.process.output import Line, one_line, print_table
from outbox.process.signals import stopping
from outbox.process.urls import libpq_url, parse_url, refuse_query, shown
from outbox.process.waiting import Stopped, wait_for


@pytest.fixture(autouse=True)
def _forget_passwords() -> Iterator[None]:
    yield
    passwords._known.clear()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (Fenced("x"), 3),
        (Unreachable("x"), 1),
        (Retryable("x"), 1),
        (MessageAtFault("x"), 1),
        (Forgotten("x"), 1),
        (OutboxError("x"), 1),
        (RuntimeError("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def line(message: str, *, debug: bool = False, error: BaseException | None = None) -> str:
    record = logging.LogRecord(
        "relay", logging.ERROR, "", 0, message, (), (type(error), error, None) if error else None
    )
    return Line("relay", debug=debug, times=False).format(record)


def test_a_message_of_several_lines_is_one_line() -> None:
    assert line("no\n\tsuch\r\nthing\n") == "relay: error: no such thing"


def test_a_topic_cannot_give_commands_to_the_terminal() -> None:
    assert one_line("topic \x1b[2J\x07\x9b\u2028x") == "topic \\x1b[2J\\x07\\x9b x"


def test_a_traceback_is_shown_only_when_asked_for() -> None:
    error = ValueError("inside")
    assert line("outside", error=error) == "relay: error: outside"
    assert line("outside", error=error, debug=True) == "relay: error: outside\nValueError: inside"


@pytest.mark.parametrize(
    "text",
    [
        "cannot connect to postgresql://app:hunter2@db/app",
        "postgresql+asyncpg://app:hunter2@db:5432/app?x=1 is away",
        "amqp://app:a@hunter2@host/v",
        "connection string: host=db password=hunter2 user=app",
        "sasl.password=hunter2&acks=all",
        "password = 'hunter2 and more'",
        "OUTBOX_SECRET=hunter2",
    ],
)
def test_whatever_looks_like_a_password_is_hidden(text: str) -> None:
    assert "hunter2" not in line(text)


def test_the_password_of_a_url_is_hidden_wherever_it_turns_up() -> None:
    passwords.remember("postgresql://app:p%40ss%2Fword@db/app")
    passwords.remember("postgresql://db/app?password=query-pass&user=app")
    assert line("said p@ss/word, p%40ss%2Fword or query-pass.") == "relay: error: said ***, *** or ***."


def test_a_password_that_is_also_the_name_of_the_user_hides_neither() -> None:
    passwords.remember("postgresql://postgres:postgres@db/app")
    assert line('password authentication failed for user "postgres"').endswith('for user "postgres"')


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("postgresql://app:secret@db/app", "postgresql://app:***@db/app"),
        ("postgresql://db/app?password=secret", "postgresql://db/app?password=%2A%2A%2A"),
        ("postgresql://app:se@cret@db/app", "the URL given"),
        ("postgresql://app:secret@db:port/app", "the URL given"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, seen: str) -> None:
    assert shown(url) == seen


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://x/y", "unknown database scheme 'mysql'"),
        ("nonsense", "cannot be read"),
        ("postgresql://app:se@cret@db/app", r"write an @ .* as %40"),
        ("postgresql://db:port/app", "cannot be read"),
    ],
)
def test_a_url_that_is_none_of_ours_is_refused_with_an_example(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        parse_url(url)
    assert "cret" not in str(caught.value)


def test_a_url_may_have_the_settings_of_any_driver() -> None:
    url = parse_url("postgresql+asyncpg://app@db/app?ssl=true&prepared_statement_cache_size=0&application_name=x")
    assert libpq_url(url) == "postgresql://app@db/app?application_name=x&sslmode=require"
    refuse_query(parse_url("sqlite:///file.db?timeout=30&check_same_thread=false"))


def test_an_unknown_setting_of_an_sqlite_url_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown setting mode in sqlite:///file\.db"):
        refuse_query(parse_url("sqlite:///file.db?mode=ro"))


def test_a_table_lines_up_and_shows_what_is_missing_as_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["relay", "lag"], [{"relay": "default", "lag": 3}, {"relay": "b", "lag": None}])
    assert capsys.readouterr().out == "relay    lag\ndefault  3\nb        -\n"


def test_waiting_goes_on_until_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    answers = [Unreachable("away"), Unreachable("away"), "here"]

    def attempt() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Unreachable):
            raise answer
        return str(answer)

    with caplog.at_level(logging.INFO):
        assert wait_for(attempt, seconds=None) == "here"
    assert [record.getMessage() for record in caplog.records] == ["away; waiting until it answers"]


def refused() -> None:
    raise Unreachable("away")


def test_waiting_ends_with_the_error_when_the_time_is_up() -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match="away"):
        wait_for(refused, seconds=0.2)
    assert time.monotonic() - began >= 0.2


def test_what_is_wrong_in_another_way_is_not_waited_for() -> None:
    def attempt() -> None:
        raise ConfigurationError("no table")

    with pytest.raises(ConfigurationError):
        wait_for(attempt, seconds=None)


def test_waiting_ends_when_it_is_stopped() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        wait_for(refused, seconds=None, stop=stop)


def test_a_signal_is_heard_while_the_main_thread_is_inside_a_c_library(tmp_path: Path) -> None:
    # A handler in Python would run when the call returns: here when its busy time-out is over.
    holder = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
    waiting = sqlite3.connect(tmp_path / "x.db", isolation_level=None, timeout=10)
    with closing(holder), closing(waiting), stopping(quiet=True) as stop:
        holder.execute("begin immediate")

        def release() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            if stop.wait(5):
                holder.execute("rollback")

        thread = threading.Timer(0.05, release)
        thread.start()
        waiting.execute("begin immediate")
        thread.join()
        assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


STUCK = """
import signal, threading
from outbox.process.signals import stopping
with stopping() as stop:
    print("ready", flush=True)
    stop.wait()
    print("stopping", flush=True)
    threading.Event().wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_process_that_does_not_finish(number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(number)
        assert process.wait(10) == 1
        assert "a second signal ends at once" in process.stderr.read()
