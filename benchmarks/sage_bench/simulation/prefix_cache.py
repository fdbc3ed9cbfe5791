"""The prefix cache of one engine: blocks by chain hash, pinned while in use, else kept by LRU.

vLLM's rules: a block stays after its last user until the room is needed; the least recently used
goes first, and of one request its tail before its head. Blocks have a fixed number of tokens.
"""

from __future__ import annotations

from collections import OrderedDict


class PrefixCache:
    """Blocks of ``block_tokens`` tokens; counts are blocks."""

    __slots__ = ("_kept", "_pinned", "block_tokens")

    def __init__(self, block_tokens: int = 64) -> None:
        self.block_tokens = block_tokens
        self._pinned: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def pinned(self) -> int:
        """Blocks in use, each counted once."""
        return len(self._pinned)

    @property
    def kept(self) -> int:
        """Blocks that nobody uses now: hits to come, or room to take."""
        return len(self._kept)

    def hits(self, chain: tuple[int, ...]) -> tuple[int, int]:
        """Leading blocks of ``chain`` that are here, and how many of those are pinned."""
        found = shared = 0
        for block in chain:
            if block in self._pinned:
                shared += 1
            elif block not in self._kept:
                break
            found += 1
        return found, shared

    def pin(self, chain: tuple[int, ...]) -> None:
        """Use all blocks of ``chain``; those that are not here are computed now."""
        pinned, kept = self._pinned, self._kept
        for block in chain:
            count = pinned.get(block, 0)
            pinned[block] = count + 1
            if not count:
                kept.pop(block, None)

    def release(self, chain: tuple[int, ...]) -> None:
        """Stop using the blocks of ``chain``; they are kept."""
        pinned, kept = self._pinned, self._kept
        for block in reversed(chain):
            count = pinned[block] - 1
            if count:
                pinned[block] = count
            else:
                del pinned[block]
                kept[block] = None

    def keep(self, chain: tuple[int, ...]) -> None:
        """Remember blocks that were computed as part of an answer."""
        for block in reversed(chain):
            if block in self._pinned:
                continue
            self._kept[block] = None
            self._kept.move_to_end(block)

    def shrink(self, blocks: int) -> None:
        """Drop the least recently used until at most ``blocks`` unused ones are kept."""
        kept = self._kept
        while len(kept) > max(0, blocks):
            kept.popitem(last=False)

    def clear(self) -> None:
        """Forget everything (the engine restarted)."""
        self._pinned.clear()
        self._kept.clear()
