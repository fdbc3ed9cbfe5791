"""The prefix index against plain lists that are searched from the front."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sage_prefect.control_plane.events import PREFIX_BLOCK_TOKENS
from sage_prefect.control_plane.prefix_index import (
    DEFAULT_CAPACITY_TOKENS,
    HOLDERS_PER_BLOCK,
    PrefixIndex,
)


def chain(text: str) -> tuple[int, ...]:
    """One block per letter; equal hashes mean equal beginnings."""
    return tuple(hash(text[: end + 1]) for end in range(len(text)))


def index(*engines: str, blocks: int = 100) -> PrefixIndex:
    made = PrefixIndex()
    for engine in engines:
        made.set_capacity(engine, blocks * PREFIX_BLOCK_TOKENS)
    return made


def blocks(made: PrefixIndex, engine: str, text: str) -> float:
    return made.cached_tokens(engine, chain(text)) / PREFIX_BLOCK_TOKENS


# -- one engine -------------------------------------------------------------------------------


def test_the_longest_common_beginning_is_known() -> None:
    made = index("e")
    made.record("e", chain("abcdef"))
    known = [blocks(made, "e", text) for text in ("abcdef", "abcxyz", "abcdefgh", "bcd", "a", "")]
    assert known == [6, 3, 6, 0, 1, 0]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9, 33])
def test_every_depth_of_every_length_is_found(length: int) -> None:
    prompt = tuple(range(length))
    for depth in range(length + 1):
        made = index("e")
        made.record("e", prompt[:depth])
        assert made.cached_tokens("e", prompt) == depth * PREFIX_BLOCK_TOKENS
        assert made.holders(prompt) == (["e"] if depth else [])


def test_unknown_engines_hold_nothing_and_take_nothing() -> None:
    made = index("e")
    made.record("other", chain("abc"))
    made.learn("other", 1000.0, 0)
    assert made.cached_tokens("other", chain("abc")) == 0.0
    assert made.hit_ratio("other") == 1.0
    assert made.holders(chain("abc")) == []


def test_an_engine_of_unknown_size_has_the_default_one() -> None:
    made = PrefixIndex()
    made.set_capacity("e", None)
    for number in range(DEFAULT_CAPACITY_TOKENS // PREFIX_BLOCK_TOKENS + 10):
        made.record("e", (number,))
    known = sum(made.cached_tokens("e", (number,)) > 0 for number in range(8000))
    assert known == DEFAULT_CAPACITY_TOKENS // PREFIX_BLOCK_TOKENS


def test_the_least_recently_used_is_forgotten_first_and_its_end_before_its_beginning() -> None:
    made = index("e", blocks=6)
    made.record("e", chain("abc"))
    made.record("e", chain("xyz"))
    made.record("e", chain("abc"))
    made.record("e", chain("pq"))
    assert [blocks(made, "e", text) for text in ("abc", "xyz", "pq")] == [3, 1, 2]


def test_a_prompt_longer_than_the_cache_leaves_its_beginning() -> None:
    made = index("e", blocks=4)
    made.record("e", chain("abcdefgh"))
    assert blocks(made, "e", "abcdefgh") == 4


def test_each_engine_has_its_own_capacity_and_may_shrink() -> None:
    made = index("small", blocks=2)
    made.set_capacity("large", 50 * PREFIX_BLOCK_TOKENS)
    for engine in ("small", "large"):
        made.record(engine, chain("abcdefgh"))
    assert (blocks(made, "small", "abcdefgh"), blocks(made, "large", "abcdefgh")) == (2, 8)
    made.set_capacity("large", 5 * PREFIX_BLOCK_TOKENS)
    assert blocks(made, "large", "abcdefgh") == 5


def test_a_look_takes_steps_in_the_logarithm_of_the_prompt() -> None:
    class Counting(OrderedDict[int, None]):
        looks = 0

        def __contains__(self, key: object) -> bool:
            Counting.looks += 1
            return super().__contains__(key)

    made = index("e", blocks=5000)
    prompt = tuple(range(4096))
    made.record("e", prompt[:1777])
    made._caches["e"].blocks = Counting(made._caches["e"].blocks)
    assert made.cached_tokens("e", prompt) == 1777 * PREFIX_BLOCK_TOKENS
    assert Counting.looks <= 2 + math.log2(len(prompt))


# -- several engines --------------------------------------------------------------------------


def test_holders_are_those_of_the_longest_prefix_and_few() -> None:
    made = index("a", "b", "c", "d")
    for engine in "abcd":
        made.record(engine, chain("xy"))
    made.record("b", chain("xyz"))
    assert made.holders(chain("xyzw")) == ["b"]
    assert len(made.holders(chain("xyw"))) == 3
    assert len(made.holders(chain("xyw"), limit=2)) == 2
    assert made.holders(chain("other")) == []


def test_a_hot_prefix_has_a_bounded_number_of_holders_the_newest() -> None:
    engines = [f"e{number}" for number in range(HOLDERS_PER_BLOCK + 2)]
    made = index(*engines)
    for engine in engines:
        made.record(engine, chain("ab"))
    holders = made.holders(chain("ab"), limit=100)
    assert holders == engines[-HOLDERS_PER_BLOCK:]
    assert [blocks(made, engine, "ab") for engine in engines[:2]] == [0, 0]


def test_an_engine_that_is_gone_is_forgotten() -> None:
    made = index("a", "b")
    made.record("a", chain("xyz"))
    made.record("b", chain("x"))
    made.forget("a")
    assert made.cached_tokens("a", chain("xyz")) == 0.0
    assert made.holders(chain("xyz")) == ["b"]
    made.forget("b")
    made.forget("b")
    assert not made._holders


# -- what engines report ----------------------------------------------------------------------


def feed(made: PrefixIndex, text: str, share: float, times: int) -> None:
    """The engine says each time that ``share`` of what was sent before was in its cache."""
    for _ in range(times):
        expected = made.cached_tokens("e", chain(text))
        made.learn("e", expected, round(share * len(text) * PREFIX_BLOCK_TOKENS))


def test_what_engines_report_scales_what_is_promised() -> None:
    made = index("e", "other")
    for engine in ("e", "other"):
        made.record(engine, chain("abcdefghij"))
    feed(made, "abcdefghij", 0.6, 200)
    assert blocks(made, "e", "abcdefghij") == pytest.approx(6.0, rel=0.01)
    assert blocks(made, "other", "abcdefghij") == 10


def test_a_cache_that_works_again_is_believed_again() -> None:
    made = index("e")
    made.record("e", chain("abcd"))
    feed(made, "abcd", 0.0, 300)
    assert made.hit_ratio("e") == 0.05
    feed(made, "abcd", 1.0, 300)
    assert made.hit_ratio("e") == pytest.approx(1.0, rel=0.01)


def test_more_than_was_promised_is_no_more_than_all() -> None:
    made = index("e")
    made.record("e", chain("abcd"))
    feed(made, "abcd", 50.0, 10)
    assert made.hit_ratio("e") == 1.0


def test_where_nothing_was_promised_nothing_is_learned() -> None:
    made = index("e")
    for _ in range(100):
        made.learn("e", 0.0, 0)
    assert made.hit_ratio("e") == 1.0


# -- against plain lists ----------------------------------------------------------------------

TEXT = st.text("ab", min_size=0, max_size=7)


class IndexMachine(RuleBasedStateMachine):
    """No block has more holders than are kept: the index is exact."""

    engines = "xyz"

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[str, list[int]] = {}
        """By engine, the block used last at the end."""
        self.capacity: dict[str, int] = {}

    @rule(data=st.data(), size=st.integers(0, 12))
    def resize(self, data: st.DataObject, size: int) -> None:
        engine = data.draw(st.sampled_from(self.engines))
        self.index.set_capacity(engine, size * PREFIX_BLOCK_TOKENS or 1)
        self.capacity[engine] = max(1, size)
        self.held.setdefault(engine, [])
        self.trim(engine)

    @rule(data=st.data(), text=TEXT)
    def record(self, data: st.DataObject, text: str) -> None:
        engine = data.draw(st.sampled_from(self.engines))
        self.index.record(engine, chain(text))
        if engine in self.held:
            for block in reversed(chain(text)):
                if block in self.held[engine]:
                    self.held[engine].remove(block)
                self.held[engine].append(block)
            self.trim(engine)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        engine = data.draw(st.sampled_from(self.engines))
        self.index.forget(engine)
        self.held.pop(engine, None)

    @rule(text=TEXT)
    def look(self, text: str) -> None:
        depths = {engine: self.depth(engine, text) for engine in self.engines}
        for engine, depth in depths.items():
            assert self.index.cached_tokens(engine, chain(text)) == depth * PREFIX_BLOCK_TOKENS
        best = max(depths.values())
        expected = {engine for engine, depth in depths.items() if depth == best > 0}
        assert set(self.index.holders(chain(text))) == expected

    def trim(self, engine: str) -> None:
        excess = len(self.held[engine]) - self.capacity[engine]
        if excess > 0:
            del self.held[engine][:excess]

    def depth(self, engine: str, text: str) -> int:
        held = self.held.get(engine, [])
        known = [block in held for block in chain(text)]
        return known.index(False) if False in known else len(known)

    @invariant()
    def the_books_agree(self) -> None:
        for engine, blocks in self.held.items():
            assert list(self.index._caches[engine].blocks) == blocks
        pairs = {(block, e) for block, held in self.index._holders.items() for e in held}
        assert pairs == {(block, e) for e, held in self.held.items() for block in held}
        assert all(self.index._holders.values())


class CrowdedIndexMachine(RuleBasedStateMachine):
    """More engines than holders are kept: it may know less than there is, never more."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.sent: dict[str, set[int]] = {f"e{number}": set() for number in range(7)}
        for engine in self.sent:
            self.index.set_capacity(engine, 5 * PREFIX_BLOCK_TOKENS)

    @rule(engine=st.integers(0, 6), text=TEXT)
    def record(self, engine: int, text: str) -> None:
        self.index.record(f"e{engine}", chain(text))
        self.sent[f"e{engine}"].update(chain(text))

    @rule(engine=st.integers(0, 6))
    def restart(self, engine: int) -> None:
        self.index.forget(f"e{engine}")
        self.index.set_capacity(f"e{engine}", 5 * PREFIX_BLOCK_TOKENS)
        self.sent[f"e{engine}"].clear()

    @rule(text=TEXT)
    def look(self, text: str) -> None:
        for engine, sent in self.sent.items():
            known = self.index.cached_tokens(engine, chain(text))
            assert known <= PREFIX_BLOCK_TOKENS * sum(block in sent for block in chain(text))
        for engine in self.index.holders(chain(text)):
            assert chain(text)[0] in self.sent[engine]

    @invariant()
    def the_books_agree(self) -> None:
        pairs = {(block, e) for block, held in self.index._holders.items() for e in held}
        caches = self.index._caches.items()
        assert pairs == {(block, e) for e, cache in caches for block in cache.blocks}
        assert all(len(cache.blocks) <= cache.capacity for _, cache in caches)
        assert all(0 < len(held) <= HOLDERS_PER_BLOCK for held in self.index._holders.values())


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=80, stateful_step_count=30)
TestCrowdedIndex = CrowdedIndexMachine.TestCase
TestCrowdedIndex.settings = settings(max_examples=50, stateful_step_count=30)
