"""Which engine has which prompt prefix in its cache: an approximate index, per engine capacity.

Keys are chain hashes of blocks, so that one look at block i says that all blocks before it match
too; the longest known prefix is found by bisection (the property is monotone). Entries are written
when a request is dispatched: siblings of a burst find each other before the first has answered.
What engines report as cached corrects the estimate by a hit ratio per engine. Least recently used
blocks are forgotten at the engine's capacity.
"""

from __future__ import annotations

from collections import OrderedDict

from sage_prefect.control_plane.events import PREFIX_BLOCK_TOKENS

HOLDERS_PER_BLOCK = 4
DEFAULT_CAPACITY_TOKENS = 500_000
_HIT_RATE = 0.05


class _Cache:
    """What one engine is believed to hold."""

    __slots__ = ("blocks", "capacity", "hit_ratio")

    def __init__(self, capacity: int) -> None:
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self.capacity = capacity
        self.hit_ratio = 1.0


class PrefixIndex:
    """Engines by prefix."""

    def __init__(self) -> None:
        self._caches: dict[str, _Cache] = {}
        self._holders: dict[int, dict[str, None]] = {}

    def set_capacity(self, engine: str, tokens: int | None) -> None:
        """Announce an engine, or a new size of its cache."""
        blocks = max(1, (tokens or DEFAULT_CAPACITY_TOKENS) // PREFIX_BLOCK_TOKENS)
        cache = self._caches.get(engine)
        if cache is None:
            self._caches[engine] = _Cache(blocks)
        else:
            cache.capacity = blocks
            self._shrink(engine, cache)

    def forget(self, engine: str) -> None:
        """The engine is gone, or its cache is empty."""
        cache = self._caches.pop(engine, None)
        if cache is not None:
            for block in cache.blocks:
                self._drop(block, engine)

    def cached_tokens(self, engine: str, prefix: tuple[int, ...]) -> float:
        """Tokens of the prompt that the engine is believed to have cached."""
        cache = self._caches.get(engine)
        if cache is None or not prefix:
            return 0.0
        return self._depth(cache, prefix) * PREFIX_BLOCK_TOKENS * cache.hit_ratio

    def cached_by_engine(self, prefix: tuple[int, ...]) -> dict[str, float]:
        """:meth:`cached_tokens` of the engines that hold some of a prefix; the others hold none."""
        caches = self._caches
        return {
            engine: self._depth(caches[engine], prefix)
            * PREFIX_BLOCK_TOKENS
            * caches[engine].hit_ratio
            for engine in self._holders.get(prefix[0], ())
        }

    def holders(self, prefix: tuple[int, ...], limit: int = 3) -> list[str]:
        """Engines with the longest known prefix, at most ``limit``."""
        low, high = 0, len(prefix)
        while low < high:
            middle = (low + high + 1) // 2
            if prefix[middle - 1] in self._holders:
                low = middle
            else:
                high = middle - 1
        return list(self._holders[prefix[low - 1]])[:limit] if low else []

    def record(self, engine: str, prefix: tuple[int, ...]) -> None:
        """The engine gets a prompt with this prefix."""
        cache = self._caches.get(engine)
        if cache is None:
            return
        # From the end: the beginning, which others share, is forgotten last (as engines do).
        blocks = cache.blocks
        for block in reversed(prefix):
            if block in blocks:
                blocks.move_to_end(block)
                continue
            holders = self._holders.setdefault(block, {})
            if len(holders) >= HOLDERS_PER_BLOCK:
                # The one named first gives way; it may still hold it, we only forget.
                loser = next(iter(holders))
                del holders[loser]
                self._caches[loser].blocks.pop(block, None)
            holders[engine] = None
            blocks[block] = None
        self._shrink(engine, cache)

    def learn(self, engine: str, expected: float, reported: int) -> None:
        """Compare what the index promised with what the engine says that it had cached."""
        cache = self._caches.get(engine)
        # The promise was scaled by the ratio: one block of a cache that hits seldom counts too.
        if cache is None or expected < PREFIX_BLOCK_TOKENS * cache.hit_ratio:
            return
        seen = min(1.0, reported / expected * cache.hit_ratio)
        cache.hit_ratio = max(0.05, cache.hit_ratio + _HIT_RATE * (seen - cache.hit_ratio))

    def hit_ratio(self, engine: str) -> float:
        """Reported over expected, 0.05 to 1."""
        cache = self._caches.get(engine)
        return 1.0 if cache is None else cache.hit_ratio

    # -- inside ---------------------------------------------------------------------------

    @staticmethod
    def _depth(cache: _Cache, prefix: tuple[int, ...]) -> int:
        blocks = cache.blocks
        if prefix[0] not in blocks:
            return 0
        if prefix[-1] in blocks:
            return len(prefix)
        low, high = 1, len(prefix) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if prefix[middle - 1] in blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def _shrink(self, engine: str, cache: _Cache) -> None:
        while len(cache.blocks) > cache.capacity:
            block, _ = cache.blocks.popitem(last=False)
            self._drop(block, engine)

    def _drop(self, block: int, engine: str) -> None:
        holders = self._holders.get(block)
        if holders is not None:
            holders.pop(engine, None)
            if not holders:
                del self._holders[block]
