"""A batch while it is put together: what fits, and which inputs are equal.

The token budget is text-embeddings-inference's (``core/src/queue.rs``): a padded engine computes
the longest input times their number, a ragged one the sum.
"""

from __future__ import annotations

from sage_prefect.control_plane.events import BatchPart
from sage_prefect.control_plane.executors.length_buckets import BatchedInput

LENGTH_RATIO = 2
"""In a padded batch the longest input is at most so many times the shortest."""
MAX_INPUTS = 2048
"""What OpenAI's embeddings API takes in one call."""


class BatchDraft:
    """Inputs of one call to come; tokens are estimates.

    Args:
        padded: the engine pads each input to the longest.
        max_inputs: inputs of one call, equal ones counted once.
    """

    __slots__ = ("_by_key", "_longest", "_max_inputs", "_shortest", "padded", "parts", "tokens")

    def __init__(self, *, padded: bool, max_inputs: int = MAX_INPUTS) -> None:
        self.parts: list[list[BatchedInput]] = []
        """Each the input that is sent and those that equal it."""
        self.tokens = 0
        """Sum over the inputs that are sent."""
        self.padded = padded
        self._max_inputs = max_inputs
        self._longest = 0
        self._shortest = 0
        self._by_key: dict[int, list[BatchedInput]] = {}

    @property
    def work(self) -> int:
        """Tokens that the engine will compute."""
        return self._longest * len(self.parts) if self.padded else self.tokens

    def fits(self, one: BatchedInput, budget: float) -> bool:
        """Whether it may join. The first always may: what is over the budget goes alone."""
        parts = self.parts
        if not parts or one.key in self._by_key:
            return True
        if len(parts) >= self._max_inputs:
            return False
        if not self.padded:
            return self.tokens + one.tokens <= budget
        longest = max(self._longest, one.tokens)
        shortest = min(self._shortest, one.tokens)
        return longest <= LENGTH_RATIO * shortest and longest * (len(parts) + 1) <= budget

    def is_full(self, budget: float) -> bool:
        """Whether nothing fits any more, but equals of what is in."""
        number = len(self.parts)
        if number >= self._max_inputs:
            return True
        return number > 0 and self.work + (self._longest if self.padded else 1) > budget

    def add(self, one: BatchedInput) -> None:
        """Take it in, as a copy if an equal one is in already."""
        key = one.key
        if key is not None:
            equal = self._by_key.get(key)
            if equal is not None:
                equal.append(one)
                return
        part = [one]
        if key is not None:
            self._by_key[key] = part
        self._shortest = min(self._shortest, one.tokens) if self.parts else one.tokens
        self._longest = max(self._longest, one.tokens)
        self.tokens += one.tokens
        self.parts.append(part)

    def as_parts(self) -> tuple[BatchPart, ...]:
        """What is told to the driver."""
        return tuple(
            BatchPart(
                part[0].request.request_id,
                part[0].index,
                tuple((copy.request.request_id, copy.index) for copy in part[1:]),
            )
            for part in self.parts
        )
