"""Whose is which partition: each has one owner that states its topic, shares are even, and little moves."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import ConfigurationError
from relay.logs.assignment import assign, stated_topics
from relay.logs.contract import Partition

TOPICS = ["orders", "payments", "refunds", "stock"]
NAMES = st.text("abcdefgh0123456789-", min_size=1, max_size=20)
MEMBERS = st.dictionaries(NAMES, st.frozensets(st.sampled_from(TOPICS), min_size=1), min_size=1, max_size=8)
LIKE_MINDED = st.sets(NAMES, min_size=1, max_size=8).map(lambda names: dict.fromkeys(names, frozenset(TOPICS)))
MADE = st.lists(st.tuples(st.sampled_from(TOPICS), st.integers(1, 24)), unique_by=lambda topic: topic[0])


def partitions(made: list[tuple[str, int]]) -> list[list[Partition]]:
    return [[Partition(name, f"made-{name}", number) for number in range(count)] for name, count in made]


@given(MEMBERS, MADE)
def test_each_partition_of_a_stated_topic_has_one_owner_that_states_it(members, made):
    owners = assign(members, partitions(made))
    stated = frozenset().union(*members.values())
    assert owners.keys() == {one for topic in partitions(made) for one in topic if one.topic in stated}
    assert all(partition.topic in members[owner] for partition, owner in owners.items())


@given(MEMBERS, MADE)
def test_those_who_state_a_topic_share_it_to_within_one(members, made):
    owners = assign(members, partitions(made))
    for name, _ in made:
        shares = Counter(owner for partition, owner in owners.items() if partition.topic == name)
        counts = [shares[member] for member, stated in members.items() if name in stated]
        assert not counts or max(counts) - min(counts) <= 1


@given(LIKE_MINDED, MADE)
def test_members_of_the_same_topics_share_all_of_them_to_within_one(members, made):
    shares = Counter(assign(members, partitions(made)).values())
    counts = [shares[member] for member in members]
    assert max(counts) - min(counts) <= 1


@given(MEMBERS, MADE, st.randoms(use_true_random=False))
def test_every_member_comes_to_the_same_answer(members, made, random):
    names = list(members)
    random.shuffle(names)
    assert assign({name: members[name] for name in names}, partitions(made)) == assign(members, partitions(made))


@given(MEMBERS, MADE)
def test_a_new_topic_moves_nothing_of_the_topics_before_it(members, made):
    before = assign(members, partitions(made)[:-1])
    after = assign(members, partitions(made))
    assert {partition: after[partition] for partition in before} == before


@given(MEMBERS, MADE)
def test_a_topic_made_anew_stays_with_its_owners(members, made):
    anew = [[one._replace(incarnation="anew") for one in topic] for topic in partitions(made)]
    before = {one[::2]: owner for one, owner in assign(members, partitions(made)).items()}
    assert {one[::2]: owner for one, owner in assign(members, anew).items()} == before


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_when_one_comes_or_goes_few_partitions_move_between_those_that_stay(count: int):
    moved = to_the_new_one = 0
    for start in range(40):
        names = [f"host-{start}-{number}" for number in range(count + 1)]
        few, more = (
            assign({name: {"orders"} for name in some}, partitions([("orders", 64)])) for some in (names[1:], names)
        )
        moved += sum(few[one] != more[one] for one in few)
        to_the_new_one += sum(owner == names[0] for owner in more.values())
    assert to_the_new_one <= moved <= 2 * to_the_new_one


def test_a_member_states_something():
    assert stated_topics("billing", ["b", "a", "b"]) == ("a", "b")
    with pytest.raises(ConfigurationError, match="'billing' states no topics"):
        stated_topics("billing", [])
