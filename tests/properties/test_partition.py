from hashlib import md5
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.logs.partition import partition_of

KEYS = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
ID = UUID("0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")

IN_SQL = "(('x' || substr(md5(coalesce(%(key)s, %(id)s::uuid::text)), 1, 8))::bit(32)::bigint %% %(n)s::bigint)::int"


@pytest.mark.parametrize(
    ("key", "partition"),
    # By hand: md5('42') = a1d0c6e8..., md5('') = d41d8cd9..., md5('ключ') = d7a8aef8...
    [("42", 0xA1D0C6E8 % 8), ("", 0xD41D8CD9 % 8)],
)
def test_the_partition_of_a_known_key_never_changes(key: str, partition: int):
    assert partition_of(key, ID, 8) == partition


def test_without_a_key_the_id_decides_and_an_empty_key_is_a_key():
    assert partition_of(None, ID, 1_000_003) == partition_of(str(ID), UUID(int=0), 1_000_003)
    assert partition_of("", ID, 1_000_003) == partition_of("", UUID(int=0), 1_000_003)
    assert partition_of("", ID, 1_000_003) != partition_of(None, ID, 1_000_003)


@given(KEYS, st.uuids(), st.integers(1, 1000))
def test_a_partition_is_in_range_and_depends_on_the_key_alone(key: str | None, id_: UUID, partitions: int):
    found = partition_of(key, id_, partitions)
    assert 0 <= found < partitions
    assert found == partition_of(key, id_ if key is None else UUID(int=0), partitions)


@given(KEYS, st.uuids(), st.integers(1, 1000))
def test_it_is_the_first_four_bytes_big_endian(key: str | None, id_: UUID, partitions: int):
    text = (key if key is not None else f"{id_!s}").encode("utf-8")
    assert partition_of(key, id_, partitions) == int(md5(text).hexdigest()[:8], 16) % partitions


def test_sql_draws_the_same_partition(postgresql_url: str):
    ids = [UUID(int=n * 0x1234_5678_9ABC_DEF1_2345) for n in range(1, 50)]
    keys = [None, "", "42", "ключ", "a" * 5000, "\u00e9", "e\u0301", "\U0001f600", " x ", "'"]
    with psycopg.connect(postgresql_url) as connection:
        for key in keys:
            for id_ in ids:
                for n in (1, 3, 8, 1000):
                    row = connection.execute(f"select {IN_SQL}", {"key": key, "id": id_, "n": n}).fetchone()
                    assert row == (partition_of(key, id_, n),)
