from __future__ import annotations

import pytest

from sage_prefect.control_plane.events import EngineSpec, EngineState
from sage_prefect.control_plane.ledger import Ledger


def test_charge_and_settle() -> None:
    ledger = Ledger()
    entry = ledger.add(EngineSpec("e", ("m", "n"), 2))
    assert ledger.models() == ["m", "n"]
    ledger.charge("e", "a")
    assert (entry.in_flight, entry.room, ledger.in_flight()) == (1, 1, 1)
    ledger.charge("e", "b")
    assert entry.room == 0
    ledger.settle("e", "a")
    assert (entry.in_flight, entry.room) == (1, 1)


def test_broken_promises_are_loud() -> None:
    ledger = Ledger()
    ledger.add(EngineSpec("e", ("m",), 1))
    with pytest.raises(RuntimeError, match="is not in engine 'e'"):
        ledger.settle("e", "a")
    ledger.charge("e", "a")
    with pytest.raises(RuntimeError, match=r"over its window \(1/1"):
        ledger.charge("e", "b")
    ledger.settle("e", "a")
    ledger.set_state("e", EngineState.SUSPECT)
    with pytest.raises(RuntimeError, match="suspect"):
        ledger.charge("e", "a")


def test_a_removed_engine_stays_until_it_is_empty() -> None:
    ledger = Ledger()
    ledger.add(EngineSpec("e", ("m",), 1))
    ledger.charge("e", "a")
    ledger.remove("e")
    assert ledger.models() == []
    assert ledger.get("e") is not None
    assert ledger.remove("e") is None
    assert ledger.set_state("e", EngineState.SUSPECT) is None
    ledger.settle("e", "a")
    assert ledger.get("e") is None


def test_an_engine_comes_back_while_it_leaves() -> None:
    ledger = Ledger()
    ledger.add(EngineSpec("e", ("m",), 2))
    ledger.charge("e", "a")
    ledger.remove("e")
    entry = ledger.add(EngineSpec("e", ("n",), 2))
    assert entry.in_flight == 1  # what is still inside counts
    assert entry.room == 1
    ledger.settle("e", "a")
    assert ledger.get("e") is entry
    assert ledger.models() == ["n"]
