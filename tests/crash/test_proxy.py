import threading
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import psycopg
import pytest
from proxy import Direction, Proxy

from tests.databases import wait_until


@pytest.fixture
def proxy(postgresql_url: str) -> Iterator[Proxy]:

    proxy = Proxy(urlsplit(postgresql_url).port or 5432)
    yield proxy
    proxy.close()
    proxy.close()


def test_it_forwards_large_answers_and_questions(proxy: Proxy, postgresql_url: str):
    with closing(psycopg.connect(proxy.url(postgresql_url), autocommit=True)) as connection:
        large = "x" * 20_000_000
        assert connection.execute("select %s || ''", [large]).fetchone() == (large,)
    wait_until(lambda: proxy.connections() == 0, "the connection is gone")


def test_a_cut_ends_connections_and_lets_new_ones_in(proxy: Proxy, postgresql_url: str):
    with closing(psycopg.connect(proxy.url(postgresql_url), autocommit=True)) as connection:
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    with closing(psycopg.connect(proxy.url(postgresql_url))) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_hang_stops_both_ways_until_it_is_let_go(proxy: Proxy, postgresql_url: str):
    with closing(psycopg.connect(proxy.url(postgresql_url), autocommit=True)) as connection:
        proxy.hang()
        answers: list[object] = []
        asks = threading.Thread(target=lambda: answers.append(connection.execute("select 41 + 1").fetchone()))
        asks.start()
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(proxy.url(postgresql_url), connect_timeout=2)
        assert asks.is_alive()
        proxy.let_go()
        asks.join(30)
        assert answers == [(42,)]


def test_refused_connections_are_refused_and_those_that_are_there_stay(proxy: Proxy, postgresql_url: str):
    with closing(psycopg.connect(proxy.url(postgresql_url), autocommit=True)) as connection:
        proxy.refuse()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(proxy.url(postgresql_url))
        assert connection.execute("select 1").fetchone() == (1,)
        proxy.let_go()
        psycopg.connect(proxy.url(postgresql_url)).close()


def test_an_answer_cut_off_in_the_middle_may_have_been_committed(proxy: Proxy, postgresql_url: str):
    with closing(psycopg.connect(postgresql_url, autocommit=True)) as direct:
        direct.execute("create table kept (n int)")
        with closing(psycopg.connect(proxy.url(postgresql_url), autocommit=True)) as connection:
            proxy.cut_after(3, Direction.TO_CLIENT)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("insert into kept values (1)")
        assert direct.execute("select n from kept").fetchall() == [(1,)]
        with closing(psycopg.connect(proxy.url(postgresql_url), autocommit=True)) as connection:
            proxy.cut_after(3, Direction.TO_SERVER)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("insert into kept values (2)")
        assert direct.execute("select n from kept").fetchall() == [(1,)]
    assert proxy.cuts == 2
