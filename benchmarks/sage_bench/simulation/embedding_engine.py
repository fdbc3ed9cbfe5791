"""An embedding engine: calls wait in a line, one batch runs at a time, ``S = s0 + alpha*tokens``.

A ``merging`` engine (TEI, vLLM pooling) takes as many waiting calls into a batch as its token
budget holds, at once and without a timer; a plain one runs call after call. A padded engine pays
for the longest input times their number, a ragged one for the sum.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from sage_bench.simulation.step_profile import EmbeddingProfile
from sage_prefect.common.errors import BenchmarkError, SettingsError


@dataclass(frozen=True, slots=True)
class EmbeddingEngineSpec:
    """Settings of an engine.

    Raises:
        SettingsError: the token budget is below 1.
    """

    profile: EmbeddingProfile
    merging: bool = True
    max_batch_tokens: int = 8192

    def __post_init__(self) -> None:
        if self.max_batch_tokens < 1:
            raise SettingsError(f"max_batch_tokens={self.max_batch_tokens} must be at least 1.")


class EmbeddingCall:
    """One call: lengths of its inputs in tokens."""

    __slots__ = ("aborted", "key", "lengths", "tokens")

    def __init__(self, key: object, lengths: tuple[int, ...]) -> None:
        if not lengths or min(lengths) < 1:
            raise BenchmarkError(f"embedding call {key!r} needs inputs of at least 1 token.")
        self.key = key
        self.lengths = lengths
        self.tokens = sum(lengths)
        self.aborted = False


class Answer(NamedTuple):
    """A call that has been served."""

    at: float
    call: EmbeddingCall


class EmbeddingEngine:
    """One engine; the caller calls :meth:`advance` when :attr:`next_at` has come."""

    __slots__ = (
        "_batch",
        "_held_until",
        "_line",
        "_started",
        "busy_s",
        "next_at",
        "spec",
        "stretch",
    )

    def __init__(self, spec: EmbeddingEngineSpec) -> None:
        self.spec = spec
        self.next_at = math.inf
        self.stretch = 1.0
        """Factor on the next batch's time: a slow-down, or a GPU shared with an LLM engine."""
        self.busy_s = 0.0
        self._line: deque[EmbeddingCall] = deque()
        self._batch: list[EmbeddingCall] = []
        self._started = 0.0
        self._held_until = 0.0

    @property
    def running(self) -> int:
        """Calls of the batch in work."""
        return len(self._batch)

    @property
    def waiting(self) -> int:
        """Calls in the line."""
        return len(self._line)

    def submit(self, call: EmbeddingCall, now: float) -> None:
        """Take a call in."""
        self._line.append(call)
        if not self._batch and self.next_at == math.inf:
            self.next_at = max(now, self._held_until)

    def abort(self, call: EmbeddingCall) -> None:
        """The client has gone; a call in the line is skipped, one in work ends unheard."""
        call.aborted = True

    def advance(self, now: float) -> list[Answer]:
        """Everything that is answered until ``now``, in order."""
        answers: list[Answer] = []
        while self.next_at <= now:
            at = self.next_at
            if self._batch:
                self.busy_s += at - self._started
                answers += [Answer(at, call) for call in self._batch if not call.aborted]
                self._batch = []
            self._begin(at)
        return answers

    def hold(self, until: float) -> None:
        """Hang: after the batch in work no other starts before ``until``."""
        self._held_until = max(self._held_until, until)
        if not self._batch and self.next_at != math.inf:
            self.next_at = max(self.next_at, self._held_until)

    def crash(self) -> list[EmbeddingCall]:
        """Lose everything inside at once; returns what was lost."""
        lost = [call for call in [*self._batch, *self._line] if not call.aborted]
        self._batch, self.next_at, self._held_until = [], math.inf, 0.0
        self._line.clear()
        return lost

    def _begin(self, at: float) -> None:
        line = self._line
        while line and line[0].aborted:
            line.popleft()
        if not line:
            self.next_at = math.inf
            return
        if at < self._held_until:
            self.next_at = self._held_until
            return
        profile = self.spec.profile
        batch = [line.popleft()]
        count, longest, total = len(batch[0].lengths), max(batch[0].lengths), batch[0].tokens
        while self.spec.merging and line:
            call = line[0]
            if not call.aborted:
                n, top, tokens = (
                    count + len(call.lengths),
                    max(longest, *call.lengths),
                    total + call.tokens,
                )
                if (top * n if profile.padded else tokens) > self.spec.max_batch_tokens:
                    break
                count, longest, total = n, top, tokens
                batch.append(call)
            line.popleft()
        work = longest * count if profile.padded else total
        self._batch, self._started = batch, at
        self.next_at = at + self.stretch * (profile.s0 + profile.alpha * work)
