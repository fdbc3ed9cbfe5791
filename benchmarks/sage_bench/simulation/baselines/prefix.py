"""Baselines that route by prefix: SMG's cache_aware, Dynamo's cost, LMetric.

Each keeps what it believes every engine's prefix cache to hold: the blocks that it sent there,
the least recently used dropped beyond the engine's size.
"""

from __future__ import annotations

from collections import OrderedDict

from sage_bench.simulation.baselines.base import Engine, RoutingBaseline
from sage_prefect.control_plane.events import RequestInfo

BLOCK_TOKENS = 64


class _PrefixRouting(RoutingBaseline):
    """Common part: the believed contents of the engines' caches.

    Args:
        cache_tokens: size of each engine's cache.
    """

    def __init__(self, cache_tokens: int = 1_000_000) -> None:
        super().__init__()
        self._capacity = max(1, cache_tokens // BLOCK_TOKENS)
        self._held: dict[str, OrderedDict[int, None]] = {}

    def hit_tokens(self, info: RequestInfo, engine: Engine) -> int:
        held = self._held.get(engine.name)
        hits = 0
        if held is not None:
            for block in info.prefix:
                if block not in held:
                    break
                hits += 1
        return min(hits * BLOCK_TOKENS, max(0, info.prompt_tokens - 1))

    def uncached(self, info: RequestInfo, engine: Engine) -> int:
        return info.prompt_tokens - self.hit_tokens(info, engine)

    def sent(self, info: RequestInfo, engine: Engine) -> None:
        held = self._held.setdefault(engine.name, OrderedDict())
        for block in info.prefix:
            held[block] = None
            held.move_to_end(block)
        while len(held) > self._capacity:
            held.popitem(last=False)

    def held_blocks(self, engine: Engine) -> int:
        return len(self._held.get(engine.name, ()))


class CacheAware(_PrefixRouting):
    """SMG (formerly SGLang's router): while loads are balanced the engine with the longest known
    prefix, if it covers ``cache_threshold`` of the prompt, else the one with the emptiest cache;
    the shortest queue once they are not (both ``balance_abs`` and ``balance_rel`` exceeded)."""

    name = "cache_aware"

    def __init__(
        self,
        cache_tokens: int = 1_000_000,
        cache_threshold: float = 0.5,
        balance_abs: int = 32,
        balance_rel: float = 1.1,
    ) -> None:
        super().__init__(cache_tokens)
        self._threshold = cache_threshold
        self._abs, self._rel = balance_abs, balance_rel

    def choose(self, info: RequestInfo, engines: list[Engine]) -> Engine:
        loads = [engine.in_flight for engine in engines]
        low, high = min(loads), max(loads)
        if high - low > self._abs and high > self._rel * low:
            return min(engines, key=lambda e: e.in_flight)
        best = max(engines, key=lambda e: self.hit_tokens(info, e))
        if self.hit_tokens(info, best) > self._threshold * info.prompt_tokens:
            return best
        return min(engines, key=lambda e: (self.held_blocks(e), e.in_flight))


class DynamoCost(_PrefixRouting):
    """NVIDIA Dynamo's KV router: least ``overlap_weight * prefill blocks + decode blocks``, both
    with this request added."""

    name = "dynamo_cost"

    def __init__(self, cache_tokens: int = 1_000_000, overlap_weight: float = 1.0) -> None:
        super().__init__(cache_tokens)
        self._weight = overlap_weight

    def choose(self, info: RequestInfo, engines: list[Engine]) -> Engine:
        def cost(engine: Engine) -> float:
            prefill = engine.pending + self.uncached(info, engine)
            decode = engine.running_tokens + info.prompt_tokens
            return self._weight * prefill + decode

        return min(engines, key=lambda e: (cost(e), e.in_flight))


class LMetric(_PrefixRouting):
    """LMetric (arXiv 2603.15202): least ``(pending prefill + uncached) * (requests + 1)``."""

    name = "lmetric"

    def choose(self, info: RequestInfo, engines: list[Engine]) -> Engine:
        return min(
            engines,
            key=lambda e: (
                (e.pending + self.uncached(info, e)) * (e.in_flight + 1),
                e.in_flight,
            ),
        )
