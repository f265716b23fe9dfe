"""The contract of the commands, walked as a stranger would: exit codes, data on stdout, talk on stderr."""

import base64
import signal
from pathlib import Path

import psycopg
import pytest
from acceptance.commands import Ended, User
from databases import connected, rows, wait_until, write

EFFECTS = """@inbox.handler("orders")
def handle(delivery, session):
    session.execute(
        text("insert into effects (message_key, message_type, body) values (:key, :type, :body)"),
        {"key": delivery.message.key, "type": delivery.message.type, "body": delivery.message.payload.decode()},
    )
"""


@pytest.fixture
def user(tmp_path: Path, database_url: str) -> User:
    """A user with an initialised database and a table for effects."""
    someone = User(tmp_path, database_url)
    assert someone.run("outbox", "init", "--database", database_url).code == 0
    rows(database_url, "create table effects (message_key text, message_type text, body text)")
    someone.handlers(EFFECTS)
    return someone


def in_words(ended: Ended, code: int) -> bool:
    """Return whether a command failed with that code, one line of words and no traceback."""
    assert ended.code == code, ended.talk
    assert "Traceback" not in ended.talk
    assert len([line for line in ended.talk.splitlines() if "error:" in line.lower()]) == 1, ended.talk
    return True


def test_the_road_from_a_plain_row_to_its_effect_once(user: User):
    """INVARIANT I4: the effects of a message happen once, also when relay and inbox run again.

    A relay that did not save its checkpoint with the records, or an inbox without its ids, would double them.
    """
    write(user.database, "orders", "bare")
    with connected(user.database) as connection:
        mark = "?" if user.database.startswith("sqlite") else "%s"
        for number in range(4):
            connection.execute(
                f"insert into outbox (topic, key, type, payload) values ('orders', 'k', 'Counted', {mark})",
                (str(number).encode(),),
            )
    for _ in range(2):
        assert user.relay_once().code == 0
        assert user.inbox_once().code == 0
    effects = rows(user.database, "select message_key, message_type, body from effects")
    assert sorted(effects, key=lambda row: row[2]) == [
        *(("k", "Counted", str(number)) for number in range(4)),
        (None, "orders", "bare"),
    ]
    (relay,) = user.run("relay", "status", "--database", user.database, "--json").objects()
    assert relay == {
        "relay": "default", "lag_messages": 0, "lag_seconds": 0.0, "position": 5, "owner": None,
        "epoch": 2, "dead_letters": 0, "unclaimed": 0, "maybe_lost": 0,
    }  # fmt: skip
    (group,) = user.run("inbox", "status", "--database", user.database, "--log", user.database, "--json").objects()
    lag = group.pop("lag_messages")
    assert group == {"group": "billing", "handled": 5, "duplicates": 0, "ignored": 0, "dead_letters": 0}
    assert set(lag) == {"orders"}
    assert set(lag["orders"].values()) == {0}
    (without,) = user.run("inbox", "status", "--database", user.database, "--json").objects()
    assert without["lag_messages"] is None


def test_tail_prints_an_object_a_record(user: User):
    write(user.database, "orders", "text", key="k")
    rows(user.database, "insert into outbox (topic, payload) values (?, ?)", "orders", b"\xff\x00")
    rows(user.database, "insert into outbox (topic, key, payload) values (?, ?, null)", "orders", "gone")
    user.relay_once()
    ended = user.run("relay", "tail", "orders", "--log", user.database, "--once", "--json")
    records = {record["key"]: record for record in ended.lines()}
    assert (ended.code, len(records)) == (0, 3)
    assert records["k"]["payload"] == "text"
    assert records[None]["payload_base64"] == base64.b64encode(b"\xff\x00").decode()
    assert records["gone"]["payload"] is None
    for record in records.values():
        assert {"topic", "partition", "offset", "id", "key", "type", "headers"} <= set(record)
        headers = record["headers"]
        assert headers["ce_id"] == record["id"]
        assert headers["ce_specversion"] == "1.0"
        assert len(headers["ce_sequence"]) == 19
        assert headers["ce_source"].startswith("/outbox/")
        assert {"ce_type", "ce_time", "ce_relayepoch", "content-type"} <= set(headers)


def test_a_relay_that_runs_drains_and_gives_its_lease_back_on_sigterm(user: User):
    process = user.start("relay", "run", "--database", user.database, "--log", user.database)
    try:
        for number in range(50):
            write(user.database, "orders", str(number), key="k")
        wait_until(lambda: rows(user.database, "select count(*) from log_record") == [(50,)], "all moved")
        (holding,) = user.run("relay", "status", "--database", user.database, "--json").objects()
        assert holding["owner"]
        process.send_signal(signal.SIGTERM)
        data, talk = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, data) == (0, "")
    assert "Traceback" not in talk
    (left,) = user.run("relay", "status", "--database", user.database, "--json").objects()
    assert left["owner"] is None
    assert user.relay_once().code == 0


def test_an_inbox_that_runs_ends_on_sigterm_and_the_next_one_starts_at_once(user: User):
    process = user.start("inbox", "run", "handlers:inbox", "--database", user.database, "--log", user.database)
    try:
        write(user.database, "orders", "1")
        user.relay_once()
        wait_until(lambda: rows(user.database, "select body from effects") == [("1",)], "handled")
        process.send_signal(signal.SIGTERM)
        _, talk = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, talk
    assert "Traceback" not in talk
    write(user.database, "orders", "2")
    user.relay_once()
    assert user.inbox_once().code == 0
    assert sorted(row[0] for row in rows(user.database, "select body from effects")) == ["1", "2"]


def test_a_message_at_fault_stops_the_relay_with_exit_1_and_names_it(user: User):
    rows(user.database, "insert into outbox (topic, payload, headers) values (?, ?, ?)", "orders", b"", "[1]")
    ended = user.relay_once()
    assert in_words(ended, 1)
    assert "orders" in ended.talk
    ((identity,),) = rows(user.database, "select id from outbox")
    assert str(identity).replace("-", "") in ended.talk.replace("-", "")


def test_a_rejected_message_stops_its_partition_and_once_ends_with_exit_1(user: User):
    reject = '    if delivery.message.payload == b"bad":\n        raise Reject("no such order")\n'
    user.handlers(EFFECTS.replace("    session.execute(", reject + "    session.execute("))
    write(user.database, "orders", "good", key="k")
    write(user.database, "orders", "bad", key="k")
    write(user.database, "orders", "behind", key="k")
    user.relay_once()
    ended = user.inbox_once()
    assert ended.code == 1
    assert "no such order" in ended.talk
    assert "Traceback" not in ended.talk
    assert rows(user.database, "select body from effects") == [("good",)]
    user.handlers(EFFECTS)
    assert user.inbox_once().code == 0
    assert rows(user.database, "select body from effects") == [("good",), ("bad",), ("behind",)]


def test_a_topic_that_does_not_exist_yet_is_a_notice(user: User):
    ended = user.inbox_once()
    assert ended.code == 0
    assert "orders" in ended.talk


def test_settings_come_from_option_environment_file_in_this_order(user: User):
    write(user.database, "orders", "1")
    by_environment = user.run("relay", "run", "--once", OUTBOX_DATABASE=user.database, RELAY_LOG=user.database)
    assert by_environment.code == 0, by_environment.talk
    assert user.run("relay", "status", "--json", DATABASE_URL=user.database).code == 0
    file = user.folder / "settings.toml"
    file.write_text(f'database = "{user.database}"\n')
    assert user.run("relay", "status", "--json", "--config", str(file)).code == 0
    wrong = user.run("relay", "status", "--config", str(file), OUTBOX_DATABASE="mysql://h/x")
    assert in_words(wrong, 2)
    assert "RELAY_LOG" in user.run("relay", "run", "--help").data


@pytest.mark.parametrize("command", ["outbox", "relay", "inbox"])
def test_each_command_tells_its_version(tmp_path: Path, command: str):
    ended = User(tmp_path, "").run(command, "--version")
    assert ended.code == 0
    assert ended.data.strip()


def test_what_goes_wrong_is_said_in_words_with_its_exit_code(tmp_path: Path):
    user = User(tmp_path, f"sqlite:///{tmp_path / 'app.db'}")
    assert user.run("outbox", "init", "--database", user.database).code == 0
    user.handlers("not_an_inbox = 1\n")
    assert in_words(user.run("relay", "run", "--database", user.database, "--log", "smoke://signal", "--once"), 2)
    assert in_words(user.inbox_once(handlers="no_such_module:inbox"), 2)
    assert in_words(user.inbox_once(handlers="handlers:not_an_inbox"), 2)
    assert user.run("relay", "run", "--no-such-option").code == 2
    empty = User(tmp_path, f"sqlite:///{tmp_path / 'empty.db'}")
    (tmp_path / "empty.db").touch()
    assert in_words(empty.relay_once(), 2)
    assert empty.run("outbox", "check", "--database", empty.database).code in (1, 2)


def test_an_unreachable_database_is_given_up_after_the_wait_and_no_password_is_shown(tmp_path: Path):
    user = User(tmp_path, "postgresql+asyncpg://x:secret@127.0.0.1:1/x")
    ended = user.relay_once("--wait", "1")
    assert in_words(ended, 1)
    assert "secret" not in ended.talk + ended.data


def test_init_prints_ddl_that_makes_what_check_expects(tmp_path: Path, postgresql_url: str):
    user = User(tmp_path, postgresql_url)
    printed = user.run("outbox", "init", "--sql", "--dialect", "postgresql")
    assert printed.code == 0
    rows(postgresql_url, printed.data.replace("%", "%%") if "%" in printed.data else printed.data)
    checked = user.run("outbox", "check", "--database", postgresql_url)
    assert checked.code == 0, checked.talk


def test_a_relay_that_is_fenced_under_once_ends_with_exit_3(tmp_path: Path, postgresql_url: str):
    """INVARIANT I6: what it was about to append goes nowhere, because somebody else has taken the next step."""
    user = User(tmp_path, postgresql_url)
    assert user.run("outbox", "init", "--database", postgresql_url).code == 0
    write(postgresql_url, "orders", "1")
    with psycopg.connect(postgresql_url) as blocker:
        blocker.execute("select 1 from log_identity for update")
        process = user.start("relay", "run", "--database", postgresql_url, "--log", postgresql_url, "--once")
        activity = "select count(*) from pg_stat_activity where application_name = 'relay default'"
        try:
            wait_until(
                lambda: rows(postgresql_url, f"{activity} and wait_event_type = 'Lock'") == [(1,)],
                "its append waits for the log's lock",
            )
            rows(
                postgresql_url,
                "insert into relay_checkpoint select incarnation, step + 1, epoch + 1, 'another', 0, 60,"
                " now() + interval '1 minute', snapshot_from, snapshot_to, last, position"
                " from relay_checkpoint order by step desc limit 1",
            )
            blocker.rollback()
            _, talk = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 3, talk
    assert "Traceback" not in talk
    assert rows(postgresql_url, "select count(*) from log_record") == [(0,)]
