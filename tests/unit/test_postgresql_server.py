import psycopg
from postgresql_server import PostgresqlServer


def test_a_server_recovers_after_a_crash(own_postgresql_server: PostgresqlServer):
    with psycopg.connect(own_postgresql_server.url(), autocommit=True) as connection:
        connection.execute("create table kept (n int)")
    own_postgresql_server.crash()
    assert not own_postgresql_server.is_running()
    own_postgresql_server.start()
    with psycopg.connect(own_postgresql_server.url()) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)


def test_each_test_has_an_empty_database(postgresql_url: str):
    with psycopg.connect(postgresql_url) as connection:
        row = connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone()
    assert row == (0,)
