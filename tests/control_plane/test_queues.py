"""The band's queue: its order against a plain search, and heaps no longer than what waits."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sage_prefect.control_plane.events import RequestInfo
from sage_prefect.control_plane.queues import KEPT_ACCOUNTS, LAG_S, Accounts, BandQueue
from sage_prefect.control_plane.scheduled_request import ScheduledRequest


def request(seq: int, tenant: str = "a", due: float = 0.0) -> ScheduledRequest:
    made = ScheduledRequest(RequestInfo(f"r{seq}", "m", tenant=tenant), seq, 0.0)
    made.due = due
    return made


def queue() -> BandQueue:
    return BandQueue(Accounts(), by_deadline=True, fair=True)


def take(band: BandQueue) -> ScheduledRequest:
    head = band.head()
    assert head is not None
    band.remove(head)
    return head


def test_a_tenant_that_comes_and_goes_leaves_nothing_behind() -> None:
    """An item left per visit made each decision cost as much as all requests ever served."""
    band = queue()
    for seq in range(1000):
        one = request(seq)
        band.push(one)
        assert take(band) is one
        band.accounts.of("a").virtual += 1.0
        assert len(band._heap) <= 1
        assert sum(len(flow.heap) for flow in band._flows.values()) == 0
    assert band.size == 0
    assert band.head() is None


def test_tenants_that_come_once_leave_the_heap() -> None:
    band = queue()
    for seq in range(1000):
        band.push(request(seq, f"t{seq}"))
        take(band)
    band.push(request(1000, "last"))
    assert band.head() is not None
    # The last of them may tie with the newcomer; the 999 before it are gone.
    assert len(band._heap) == len(band._flows) <= 2


def test_cancelled_requests_do_not_pile_up_behind_one_that_waits() -> None:
    band = queue()
    band.push(request(0, due=0.0))
    for seq in range(1, 1000):
        one = request(seq, due=1.0)
        band.push(one)
        band.remove(one)
    assert band.size == 1
    assert len(band._flows["a"].heap) <= 66


def test_a_tenant_that_was_away_banks_no_credit() -> None:
    band = queue()
    band.accounts.of("a")
    band.accounts.present = 50.0
    band.push(request(0, "a"))
    assert band.accounts.of("a").virtual == 50.0 - LAG_S


def test_a_request_may_come_back() -> None:
    band = queue()
    first, second = request(0, due=1.0), request(1, due=2.0)
    band.push(first)
    band.push(second)
    band.remove(first)
    band.push(first)
    assert [take(band), take(band)] == [first, second]
    assert band.head() is None


STEP = st.one_of(
    st.tuples(st.just("push"), st.sampled_from("abcd"), st.floats(0, 10)),
    st.tuples(st.just("take"), st.floats(0, 5), st.none()),
    st.tuples(st.just("drop"), st.integers(0, 100), st.none()),
)


@settings(deadline=None)
@given(st.lists(STEP, max_size=80))
def test_the_order_is_that_of_a_plain_search(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    band = queue()
    waiting: list[ScheduledRequest] = []
    for seq, (what, first, second) in enumerate(steps):
        if what == "push":
            one = request(seq, first, second)
            band.push(one)
            waiting.append(one)
        elif what == "take" and waiting:
            head = take(band)
            virtual = {r.info.tenant: band.accounts.of(r.info.tenant).virtual for r in waiting}
            best = min(waiting, key=lambda r: (virtual[r.info.tenant], r.info.tenant, r.due, r.seq))
            assert head is best
            waiting.remove(head)
            account = band.accounts.of(head.info.tenant)
            account.virtual += first
            band.accounts.present = max(band.accounts.present, account.virtual)
        elif what == "drop" and waiting:
            gone = waiting.pop(first % len(waiting))
            band.remove(gone)
        assert band.size == len(waiting)
        assert sorted(r.seq for r in band.requests()) == sorted(r.seq for r in waiting)
        tenants = [item[2] for item in band._heap]
        assert len(tenants) == len(set(tenants)) == len(band._flows)


def test_a_refund_moves_a_tenant_forward_at_once() -> None:
    """It was charged for a long answer that turned out short: its turn comes by what it got."""
    band = queue()
    for seq in range(2):
        band.push(request(seq, "a"))
        band.push(request(10 + seq, "b"))
    assert take(band).info.tenant == "a"
    band.accounts.of("a").charge(100.0)
    assert take(band).info.tenant == "b"
    band.accounts.of("b").charge(1.0)
    band.accounts.of("a").charge(-99.5)
    assert take(band).info.tenant == "a"


def test_a_refund_counts_also_while_nothing_waits() -> None:
    band = queue()
    band.push(request(0, "a"))
    band.push(request(1, "b"))
    band.push(request(2, "c"))
    take(band)
    band.accounts.of("a").charge(100.0)
    band.push(request(3, "a"))
    assert take(band).info.tenant == "b"
    band.accounts.of("b").charge(1.0)
    band.remove(next(r for r in band.requests() if r.seq == 3))
    band.accounts.of("a").charge(-99.5)
    band.push(request(4, "a"))
    band.accounts.of("c").charge(2.0)
    assert take(band).info.tenant == "a"


def test_what_goes_before_a_tenants_work_is_what_the_others_get_meanwhile() -> None:
    band = queue()
    for seq, (tenant, cost_s) in enumerate([("a", 4.0), ("b", 1.0), ("c", 9.0)]):
        one = request(seq, tenant)
        one.cost_s = cost_s
        band.push(one)
    accounts = band.accounts
    assert accounts.ahead_s(accounts.of("a"), 1.0) == 4.0 + 1.0 + 4.0
    assert accounts.ahead_s(accounts.of("a"), 4.0) == 4.0 + 1.0 + 1.0
    assert accounts.ahead_s(accounts.of("a"), 0.1) == 4.0 + 1.0 + 9.0
    assert accounts.ahead_s(accounts.of("idle"), 1.0) == 0.0


def test_among_many_tenants_each_other_is_taken_to_get_as_much() -> None:
    band = queue()
    for seq in range(50):
        one = request(seq, f"t{seq}")
        one.cost_s = 2.0
        band.push(one)
    accounts = band.accounts
    assert accounts.ahead_s(accounts.of("t7"), 1.0) == 50 * 2.0
    assert accounts.ahead_s(accounts.of("t7"), 2.0) == 2.0 + 49 * 1.0


def test_tenants_that_came_once_are_forgotten_and_those_that_wait_are_not() -> None:
    band = queue()
    waits = request(0, "waits")
    waits.cost_s = 1.0
    band.push(waits)
    band.accounts.of("waits").charge(5.0)
    for seq in range(1, 3 * KEPT_ACCOUNTS):
        band.push(request(seq, f"t{seq}"))
        band.remove(next(r for r in band._flows[f"t{seq}"].heap)[3])
        if seq % 5000 == 0:
            band.head()
    assert len(band.accounts.by_tenant) <= KEPT_ACCOUNTS + 1
    assert band.accounts.of("waits").virtual == 5.0
    assert band.accounts.of("waits").queued == 1
