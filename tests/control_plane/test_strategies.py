"""Policies and their indexes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.errors import UnknownNameError
from sage_prefect.control_plane.events import EngineSpec, EngineState, RequestInfo
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies import POLICIES, check_policy, make_policy
from sage_prefect.control_plane.strategies.placement import PlacementIndex


def ledger_of(*windows: int) -> Ledger:
    ledger = Ledger()
    for i, window in enumerate(windows):
        ledger.add(EngineSpec(f"e{i}", ("m",), window))
    return ledger


def request(seq: int, **fields: object) -> ScheduledRequest:
    return ScheduledRequest(RequestInfo(f"r{seq}", "m"), seq, 0.0, **fields)  # type: ignore[arg-type]


def dispatch_all(policy_name: str, ledger: Ledger, count: int) -> list[str]:
    policy = make_policy(policy_name, ledger, Random(0))
    engines = []
    for seq in range(count):
        policy.add(request(seq), 0.0)
        picked = policy.next_dispatch(0.0)
        assert picked is not None
        ledger.charge(picked[1].name, picked[0].request_id)
        policy.engine_changed(picked[1])
        engines.append(picked[1].name)
    return engines


def test_fifo_takes_turns() -> None:
    assert dispatch_all("fifo", ledger_of(9, 9, 9), 6) == ["e0", "e1", "e2"] * 2


def test_least_outstanding_fills_the_emptiest() -> None:
    ledger = ledger_of(9, 9)
    for name in "abc":
        ledger.charge("e0", name)
    # Three to level the two, then in turns: e0 has waited longest for one.
    assert dispatch_all("least_outstanding", ledger, 5) == ["e1", "e1", "e1", "e0", "e1"]


def test_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="fifo, hybrid, least_outstanding"):
        check_policy("nonsense")
    assert check_policy("fifo") == "fifo"


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_tried_engines_come_last(name: str) -> None:
    ledger = ledger_of(1, 1)
    policy = make_policy(name, ledger, Random(0))
    policy.add(request(0, tried=frozenset({"e0"})), 0.0)
    picked = policy.next_dispatch(0.0)
    assert picked is not None
    assert picked[1].name == "e1"
    policy.add(request(1, tried=frozenset({"e0", "e1"})), 0.0)
    assert policy.next_dispatch(0.0) is not None


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_removed_requests_are_forgotten_and_memory_is_bounded(name: str) -> None:
    ledger = ledger_of(1)
    ledger.charge("e0", "x")
    policy = make_policy(name, ledger, Random(0))
    waiting = [request(seq) for seq in range(10_000)]
    for one in waiting:
        policy.add(one, 0.0)
    for one in waiting[:-1]:
        policy.remove(one)
        policy.remove(one)  # twice is fine
    assert len(policy) == 1
    assert [r.seq for r in policy.pending()] == [9_999]
    assert policy.waiting_for("m") == [waiting[-1]]
    assert policy.waiting_for("other") == []
    policy.engine_changed(ledger.settle("e0", "x"))
    picked = policy.next_dispatch(0.0)
    assert picked is not None
    assert picked[0] is waiting[-1]
    assert policy.next_dispatch(0.0) is None


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["charge", "settle", "state", "add", "remove"]), st.integers(0, 4)),
    max_size=60,
)


@given(OPERATIONS, st.sets(st.sampled_from(["e0", "e1", "e2"]), max_size=2))
def test_the_index_agrees_with_a_search(operations: list[tuple[str, int]], avoid: set[str]) -> None:
    ledger = ledger_of(2, 2, 2, 2, 2)

    def key(entry: EngineEntry) -> tuple[float, ...]:
        return (entry.in_flight, entry.last_turn)

    index = PlacementIndex(ledger, key)
    for number, (what, which) in enumerate(operations):
        name = f"e{which}"
        entry = ledger.get(name)
        if what == "add" or entry is None:
            entry = ledger.add(EngineSpec(name, ("m",), 2))
        elif what == "remove":
            ledger.remove(name)
        elif what == "state":
            new = EngineState.READY if entry.state is not EngineState.READY else EngineState.SUSPECT
            ledger.set_state(name, new)
        elif what == "charge" and entry.room:
            ledger.charge(name, f"r{number}")
        elif what == "settle" and entry.running:
            ledger.settle(name, sorted(entry.running)[0])
        index.update(entry)
        free = [e for e in ledger.pool("m").values() if e.room]
        preferred = [e for e in free if e.name not in avoid] or free
        best = index.best("m", avoid)
        expected = min(preferred, key=key, default=None)
        assert (best and key(best)) == (expected and key(expected))
