"""The suite's part on letting go of a group."""

import pytest
from log_contract import Member, Road, numbered, numbers

from outbox.errors import Permanent
from relay.logs.contract import Log


class ForgetContract:
    """What holds when a group is forgotten."""

    @pytest.fixture
    def log(self, road: Road):
        log = road.open()
        if not log.capabilities.consumer_groups:
            pytest.skip("this log has no consumer groups")
        yield log
        log.close()

    def test_a_group_with_a_member_is_refused_in_words_and_keeps_its_offsets(self, road: Road, log: Log):
        road.put(numbered(3))
        member = Member(log, "orders").read(3)
        ends = {batch.partition: batch.end for batch in member.batches}
        member.consumer.commit(ends)
        with pytest.raises(Permanent, match=r"group 'g' is alive: .* is a member of it; stop it"):
            log.forget("g")
        member.consumer.close()
        assert {partition: log.committed("g")[partition] for partition in ends} == ends

    def test_a_group_without_a_member_loses_its_offsets_and_others_keep_theirs(self, road: Road, log: Log):
        road.put(numbered(3))
        for group in ("g", "other"):
            member = Member(log, "orders", group=group).read(3)
            # Whether the last batch ends behind a transaction's marker depends on when it was read.
            ends = {batch.partition: batch.end for batch in member.batches}
            member.consumer.commit(ends)
            member.consumer.close()
        assert log.forget("g") is True
        assert log.committed("g") == {}
        assert log.committed("other") == ends
        assert log.forget("g") is False

    def test_a_group_that_was_never_there_is_unknown(self, log: Log):
        assert log.forget("unheard of") is False

    def test_a_group_that_was_forgotten_can_begin_again(self, road: Road, log: Log):
        road.put(numbered(3))
        Member(log, "orders").read(3).consumer.close()
        log.forget("g")
        assert numbers(Member(log, "orders").read(3).records()) == [0, 1, 2]
