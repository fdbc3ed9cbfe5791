"""The index of engines by a key: the smallest with room, and no stale entries."""

from __future__ import annotations

from sage_prefect.control_plane.events import EngineSpec, EngineState
from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.strategies.placement import PlacementIndex


def by_load(entry: EngineEntry) -> tuple[float, ...]:
    return (entry.in_flight, entry.last_turn)


def ledger_of(*names: str, window: int = 4) -> Ledger:
    ledger = Ledger()
    for name in names:
        ledger.add(EngineSpec(name, ("m",), window))
    return ledger


def best(index: PlacementIndex, *avoid: str) -> str | None:
    found = index.best("m", set(avoid))
    return None if found is None else found.name


def test_the_smallest_key_wins() -> None:
    ledger = ledger_of("a", "b")
    index = PlacementIndex(ledger, by_load)
    index.update(ledger.charge("a", "r0"))
    assert best(index) == "b"
    index.update(ledger.charge("b", "r1"))
    index.update(ledger.charge("b", "r2"))
    assert best(index) == "a"
    assert index.best("other") is None


def test_a_look_takes_nothing_away() -> None:
    index = PlacementIndex(ledger_of("a", "b"), by_load)
    assert [best(index, "a"), best(index), best(index, "a", "b"), best(index)] == [
        "b", "a", "a", "a",
    ]  # fmt: skip


def test_an_engine_without_room_comes_back_with_room() -> None:
    ledger = ledger_of("a", window=1)
    index = PlacementIndex(ledger, by_load)
    index.update(ledger.charge("a", "r"))
    assert best(index) is None
    index.update(ledger.settle("a", "r"))
    assert best(index) == "a"
    entry = ledger.set_state("a", EngineState.DOWN)
    assert entry is not None
    index.update(entry)
    assert best(index) is None


def test_an_engine_that_was_removed_and_added_again_is_another_one() -> None:
    """Its own versions may be those of its predecessor: an old entry must not speak for it."""
    ledger = ledger_of("a", "b")
    index = PlacementIndex(ledger, by_load)
    index.update(ledger.charge("b", "r0"))
    index.update(ledger.charge("a", "r1"))
    index.update(ledger.settle("a", "r1"))  # its third version: empty
    ledger.remove("a")
    index.update(ledger.add(EngineSpec("a", ("m",), 4)))
    for number in range(2):
        index.update(ledger.charge("a", f"x{number}"))
    assert best(index) == "b"


def test_memory_is_bounded_by_the_engines() -> None:
    ledger = ledger_of("a", "b", "c")
    index = PlacementIndex(ledger, by_load)
    for number in range(5000):
        index.update(ledger.charge("a", f"r{number}"))
        index.update(ledger.settle("a", f"r{number}"))
    assert len(index._heaps["m"]) <= 65
    assert best(index) == "b"


def test_an_engine_of_several_models_is_found_by_each() -> None:
    ledger = Ledger()
    both = ledger.add(EngineSpec("both", ("m", "n"), 4))
    ledger.add(EngineSpec("one", ("n",), 4))
    index = PlacementIndex(ledger, by_load)
    index.update(ledger.charge("both", "r"))
    assert index.best("m") is both
    found = index.best("n")
    assert found is not None
    assert found.name == "one"
