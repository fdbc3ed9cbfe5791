"""Who has waited long: places in the heap, and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sage_prefect.control_plane.age_heap import AgeHeap


@dataclass(eq=False)
class Waiting:
    here: bool = True
    ages_at: float = math.inf


def test_only_the_last_place_of_who_is_here_counts() -> None:
    heap: AgeHeap[Waiting] = AgeHeap(lambda one: one.here, lambda: 2)
    first, second = Waiting(), Waiting()
    heap.push(first, 1.0)
    heap.push(second, 2.0)
    heap.push(first, 3.0)
    assert heap.next_at() == 2.0
    second.here = False
    assert heap.next_at() == 3.0
    assert list(heap.old(3.0)) == [first]
    assert heap.next_at() == math.inf


def test_who_comes_back_at_the_same_time_has_a_place_again() -> None:
    heap: AgeHeap[Waiting] = AgeHeap(lambda one: one.here, lambda: 1)
    one = Waiting()
    heap.push(one, 1.0)
    one.here = False
    assert heap.next_at() == math.inf
    one.here = True
    heap.push(one, 1.0)
    assert list(heap.old(1.0)) == [one]


def test_a_deep_heap_is_not_walked_again_and_again_and_an_empty_one_holds_nobody() -> None:
    looked = 0
    waiting: list[Waiting] = []

    def is_here(one: Waiting) -> bool:
        nonlocal looked
        looked += 1
        return one.here

    heap: AgeHeap[Waiting] = AgeHeap(is_here, lambda: len(waiting))
    for number in range(20_000):
        waiting.append(Waiting())
        heap.push(waiting[-1], float(number))
    assert looked == 0
    for one in waiting:
        one.here = False
    waiting.clear()
    waiting.append(Waiting())
    heap.push(waiting[-1], 0.5)
    assert looked <= 20_001
    assert len(heap._heap) == 1
