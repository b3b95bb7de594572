"""What of a pool's sharing there was before a plan, and what of it was lost."""

from pools import planner_for, pool
from sglang.srt.blend.core.order.sharing_account import NOTHING_BEFORE, Sharing, SharingAccount
from sglang.srt.blend.core.order.snapshot import Snapshot
from sglang.srt.blend.core.pool.request_table import State


def test_what_was_possible_is_in_the_cache_or_left_or_lost():
    account = SharingAccount()
    assert account.before(0, 9, cached=0, left=900) == NOTHING_BEFORE
    assert account.before(0, 9, cached=300, left=600) == Sharing(kept=300, lost=0)
    assert account.before(4, 9, cached=350, left=500) == Sharing(kept=350, lost=50)


def test_what_somebody_holds_again_is_not_lost_any_more():
    account = SharingAccount()
    account.before(0, 9, cached=0, left=900)
    assert account.before(0, 9, cached=0, left=800).lost == 100
    assert account.before(0, 9, cached=100, left=800).lost == 0


def test_newcomers_bring_sharing_and_what_was_lost_stays_so():
    account = SharingAccount()
    account.before(0, 9, cached=0, left=900)
    account.before(2, 9, cached=200, left=660)
    assert account.before(2, 14, cached=260, left=1000) == Sharing(kept=260, lost=40)
    assert account.before(5, 14, cached=560, left=690) == Sharing(kept=560, lost=50)


def test_a_pool_of_newcomers_alone_starts_over():
    account = SharingAccount()
    account.before(0, 9, cached=0, left=900)
    account.before(8, 9, cached=500, left=100)
    assert account.before(10, 19, cached=550, left=70) == NOTHING_BEFORE
    assert account.before(12, 19, cached=580, left=30) == Sharing(kept=30, lost=10)


def test_what_those_who_run_hold_can_be_shared_by_each_who_waits():
    planner = planner_for(pool([[1] * 10 + [2, i] for i in range(3)] + [[1, 1, 9]]))
    planner.replan()

    def sharable():
        prompts, table = planner.pool.prompts, planner.table
        return Snapshot.of(prompts, table.state[prompts.slots] == State.WAITING, table).sharable

    assert sharable() == 2 * 11 + 2
    planner.admit(0)
    assert sharable() == 2 * 11 + 2
    planner.remove(0)
    assert sharable() == 11 + 2


def test_all_plans_of_a_pool_have_one_budget_of_sharing():
    """60 topics of 20 questions, one of which is answered at length: a plan may cut off a prefix in 100."""
    prompts = [[1_000 + topic] * 1_000 + [q] for topic in range(60) for q in range(20)]
    planner = planner_for(pool(prompts, [3000 if q == 0 else 5 for _ in range(60) for q in range(20)]))
    alone, rounds = 0, 6
    for _ in range(rounds):
        planner.replan()
        for slot in planner.propose(32):
            if slot % 20:
                break  # those whose topic is whole follow
            planner.admit(slot)
            planner.remove(slot)
            alone += 1
    budget = int(0.01 * 60 * 19)
    assert budget // 2 <= alone <= budget + rounds  # in each round a topic begins whose others follow
