"""An LLM engine whose requests' lengths are known: when each will have ended, and how fast it was.

The engine's own rules in large steps: prompts one after another, each in iterations that carry the
decoding sequences along; between them all decode at the pace of the iteration, until the next one
ends. What neighbours will take of the accelerator comes from the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sage_prefect.control_plane.events import EngineProfile

BUDGET = 8192


class Foreseen:
    """A request whose answer's length is known."""

    __slots__ = (
        "arrived", "attempts", "doomed", "first_at", "key", "made", "made_at", "output",
        "prompt", "tpot_s", "ttft_s",
    )  # fmt: skip

    def __init__(
        self, key: str, arrived: float, prompt: int, output: int, ttft_s: float, tpot_s: float
    ) -> None:
        self.key, self.arrived, self.prompt, self.output = key, arrived, prompt, output
        self.ttft_s, self.tpot_s = ttft_s, tpot_s
        self.first_at: float | None = None
        self.attempts = 0
        self.made = 0
        self.made_at = 0.0
        self.doomed = False
        """It will miss its promise whatever is done: it holds nobody up."""


class Outlook(NamedTuple):
    """What becomes of everything inside."""

    first_at: float
    """When the request that was asked about shows its first token."""
    ended_at: float
    """When it ends."""
    late: list[Foreseen]
    """Those that will be slower than promised."""


class ForeseenEngine:
    """One engine.

    Args:
        profile: its true constants.
        stretch: by how much its neighbours slow it down at a time.
    """

    def __init__(self, profile: EngineProfile, stretch: Callable[[float], float]) -> None:
        self.profile = profile
        self.stretch = stretch
        self.inside: dict[str, Foreseen] = {}
        self.prompt_began = 0.0
        """When the prompt that is first in line began."""

    def outlook(self, now: float, extra: Foreseen | None = None, *, strict: float = 1.0) -> Outlook:
        """What becomes of what is inside, and of ``extra`` if it is sent now, if nothing follows.

        Args:
            strict: of the time per token promised, how much counts as kept.
        """
        one, stretch = self.profile, self.stretch
        t, context, made = now, 0.0, 0.0
        rests: list[tuple[float, Foreseen, float]] = []
        prompts: list[Foreseen] = []
        for seq in self.inside.values():
            if seq.first_at is None:
                prompts.append(seq)
            else:
                rests.append((float(seq.output - seq.made), seq, seq.first_at))
                context += seq.prompt + seq.made
        n = len(rests)
        pace = (one.c0 + one.b * n + one.g * context) * stretch(now)
        rests = [
            (max(1.0, rest - (now - seq.made_at) / pace), seq, first) for rest, seq, first in rests
        ]
        if extra is not None:
            prompts.append(extra)
        extra_first = extra_ended = now
        passed = now - self.prompt_began if self.inside and prompts[:1] != [extra] else 0.0
        for seq in prompts:
            step = one.c0 + one.b * n + one.g * context
            iterations = max(1.0, seq.prompt / BUDGET)
            took = (one.a * seq.prompt + step * iterations) * stretch(t)
            if seq is extra and seq is prompts[0]:
                took += 0.5 * step * stretch(t)  # the iteration that is under way
            t += max(0.0, took - passed)
            passed = max(0.0, passed - took)
            made += iterations
            context += n * iterations + seq.prompt
            n += 1
            rests.append((made + seq.output - 1, seq, t))
            if seq is extra:
                extra_first = t
        rests.sort(key=lambda item: item[0])
        late = []
        for rest, seq, first in rests:
            k = rest - made
            if k > 0:
                step = one.c0 + one.b * n + one.g * (context + n * k / 2)
                t = self._later(t, k * step)
                context += n * k
                made = rest
            n -= 1
            context -= seq.prompt + seq.output
            if seq.output > 1 and (t - first) > strict * seq.tpot_s * (seq.output - 1):
                late.append(seq)
            if seq is extra:
                extra_ended = t
        return Outlook(extra_first, extra_ended, late)

    def _later(self, t: float, seconds: float) -> float:
        """When ``seconds`` of work are done that begins at ``t``."""
        while True:
            stretch = self.stretch(t)
            if seconds * stretch <= 1.0:
                return t + seconds * stretch
            t += 1.0
            seconds -= 1.0 / stretch
