"""Accelerators that LLM requests and embedding calls share: who gets which."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.accelerator_sharing import AcceleratorSharing
from sage_prefect.control_plane.accelerator_split import (
    CATCH_UP_S,
    MOST_CATCH_UP,
    PERIOD_S,
    AcceleratorSplit,
    Speed,
)
from sage_prefect.control_plane.embedding_demand import TAU_S
from sage_prefect.control_plane.engine_load import SHARE
from sage_prefect.control_plane.events import EngineSpec, EngineState
from sage_prefect.control_plane.ledger import Ledger

SPEED = Speed(token_s=1e-5, elsewhere=0.0)  # 100,000 tokens/s


def ledger(count: int) -> Ledger:
    made = Ledger()
    for i in range(count):
        made.add(EngineSpec(f"llm-{i}", ("llm",), 64, accelerator=f"gpu{i}"))
        made.add(EngineSpec(f"embed-{i}", ("embed",), 2, accelerator=f"gpu{i}"))
    return made


def drive(split: AcceleratorSplit, load: float, start: float, seconds: float) -> float:
    """Ask for ``load`` accelerators' worth of calls; returns the time afterwards."""
    now = start
    while now < start + seconds:
        now += 0.1
        split.asked("embed", load * 0.1 / SPEED.token_s, now)
        if split.is_due(now):
            split.turn(now, {"embed": SPEED})
    return now


@pytest.mark.parametrize(("load", "whole"), [(0.2, 0), (0.9, 1), (1.2, 1), (2.4, 2), (9.0, 3)])
def test_whole_accelerators_are_lent_and_one_keeps_the_llm(load: float, whole: int) -> None:
    books = ledger(4)
    split = AcceleratorSplit(books)
    drive(split, load, 0.0, 5 * TAU_S)
    assert len(books.lent) == whole
    # The fraction that is left goes beside the LLM requests of one more.
    assert len(books.closed) == max(0, 4 - whole - 1)
    assert not books.lent & books.closed


def test_what_is_not_asked_for_any_more_is_given_back() -> None:
    books = ledger(4)
    split = AcceleratorSplit(books)
    now = drive(split, 2.4, 0.0, 5 * TAU_S)
    given = split.turn(now + 20 * TAU_S, {"embed": SPEED})
    assert not books.lent
    assert not books.closed
    assert {entry.spec.models for entry in given} == {("llm",)}
    assert not split.is_due(now + 30 * TAU_S)


def test_what_is_lent_stays_lent_and_the_idlest_goes_first() -> None:
    books = ledger(3)
    books.get("llm-0").running.update({"a", "b"})  # type: ignore[union-attr]
    books.get("llm-1").running.add("c")  # type: ignore[union-attr]
    split = AcceleratorSplit(books)
    now = drive(split, 1.0, 0.0, 5 * TAU_S)
    assert books.lent == {"gpu2"}
    books.get("llm-2").running.update({"d", "e", "f"})  # type: ignore[union-attr]
    drive(split, 2.0, now, 5 * TAU_S)
    assert books.lent == {"gpu1", "gpu2"}


def test_a_jump_of_the_demand_is_followed_within_seconds_both_ways() -> None:
    # By a mean over TAU_S it would be 16 s and 28 s.
    books = ledger(8)
    split = AcceleratorSplit(books)
    now = drive(split, 0.4, 0.0, 5 * TAU_S)
    assert not books.lent
    now = drive(split, 4.4, now, 8.0)
    assert len(books.lent) == 4
    drive(split, 0.4, now, 12.0)
    assert not books.lent


def test_the_rest_of_a_fraction_comes_at_its_pace() -> None:
    books = ledger(4)
    split = AcceleratorSplit(books)
    now = drive(split, 1.25, 0.0, 5 * TAU_S)
    [(shared, share)] = books.shares.items()
    assert share == pytest.approx(0.26, abs=0.01)
    assert shared not in books.lent | books.closed
    split.sent(shared, 0.1, now)
    split.sent(shared, 0.1, now)
    assert split.opens_at(shared) == pytest.approx(now + 0.2 / share)
    # Where calls are not paced nothing is counted.
    for other in books.lent | books.closed:
        split.sent(other, 0.1, now)
        assert split.opens_at(other) == -math.inf


def test_what_waits_is_caught_up_with_but_takes_little_of_what_is_shared() -> None:
    books = ledger(4)
    split = AcceleratorSplit(books)
    now = drive(split, 1.25, 0.0, 5 * TAU_S)
    [(shared, before)] = books.shares.items()
    waiting = 100.0 / SPEED.token_s
    split.turn(now + PERIOD_S, {"embed": Speed(SPEED.token_s, 0.0, waiting)})
    assert books.shares[shared] == pytest.approx(before + MOST_CATCH_UP, abs=0.07)
    assert len(books.lent) == 1  # waiting calls alone take nothing from LLM requests


def test_nothing_is_given_back_before_what_waits_is_done() -> None:
    books = ledger(4)
    split = AcceleratorSplit(books)
    now = drive(split, 2.4, 0.0, 5 * TAU_S) + 5 * TAU_S
    waiting = 2 * CATCH_UP_S / SPEED.token_s
    split.turn(now, {"embed": Speed(SPEED.token_s, 0.0, waiting)})
    assert len(books.lent) == 2
    split.turn(now + PERIOD_S, {"embed": SPEED})
    assert not books.lent


def test_embedding_engines_are_told_what_they_may_take() -> None:
    books = ledger(4)
    split = AcceleratorSplit(books)
    now = drive(split, 1.25, 0.0, 5 * TAU_S)
    crowded = True
    sharing = AcceleratorSharing(books, split, lambda _: crowded)
    [lent], [shared] = books.lent, books.shares
    closed = min(books.closed)
    number = {name: name.removeprefix("gpu") for name in (lent, shared, closed)}
    for name in number.values():
        assert sharing.part(f"embed-{name}") == 1.0  # nobody is beside it
    for i in range(4):
        books.get(f"llm-{i}").running.add(f"chat-{i}")  # type: ignore[union-attr]
    split.sent(shared, 0.1, now)
    assert sharing.part(f"embed-{number[lent]}") == SHARE
    assert sharing.opens_at(f"embed-{number[lent]}") == -math.inf
    assert sharing.part(f"embed-{number[shared]}") == books.shares[shared] < SHARE
    assert sharing.opens_at(f"embed-{number[shared]}") == split.opens_at(shared) > now
    assert sharing.part(f"embed-{number[closed]}") == 0.0
    assert sharing.opens_at(f"embed-{number[closed]}") == math.inf
    crowded = False  # an LLM engine with time to spare needs no pace
    assert sharing.part(f"embed-{number[shared]}") == SHARE
    assert sharing.opens_at(f"embed-{number[shared]}") == -math.inf


def test_what_cpus_can_do_needs_no_accelerator() -> None:
    books = ledger(4)
    split = AcceleratorSplit(books)
    now = drive(split, 2.4, 0.0, 5 * TAU_S)
    split.turn(now + PERIOD_S, {"embed": Speed(SPEED.token_s, elsewhere=1.5 / SPEED.token_s)})
    assert len(books.lent) == 1


def test_engines_that_are_away_lend_nothing() -> None:
    books = ledger(2)
    books.set_state("embed-0", EngineState.DOWN)
    split = AcceleratorSplit(books)
    drive(split, 2.0, 0.0, 5 * TAU_S)
    assert not books.lent  # gpu1 alone could: its LLM would have none
    only = Ledger()
    only.add(EngineSpec("embed-0", ("embed",), 2, accelerator="gpu0"))
    split = AcceleratorSplit(only)
    drive(split, 2.0, 0.0, 5 * TAU_S)
    assert not only.lent


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.0, 1e6)), max_size=40))
def test_any_demand_leaves_an_accelerator_to_the_llm(steps: list[tuple[float, float]]) -> None:
    books = ledger(3)
    split = AcceleratorSplit(books)
    now = 0.0
    for wait, tokens in steps:
        now += wait
        split.asked("embed", tokens, now)
        if split.is_due(now):
            split.turn(now, {"embed": SPEED})
        assert len(books.lent) <= 2
        assert not books.lent & books.closed
