"""A request inside an LLM engine, and what the engine says of it."""

from __future__ import annotations

import enum
from typing import NamedTuple

from sage_prefect.common.errors import BenchmarkError


class Phase(enum.IntEnum):
    """Where a sequence stands in its engine."""

    WAITING = 0
    PREFILL = 1
    DECODE = 2
    ENDED = 3


class Sequence:
    """One request as an LLM engine sees it; lengths are tokens.

    Args:
        key: the caller's name for it.
        prompt: tokens of the prompt, at least 1.
        output: tokens that it will generate, at least 1.
        priority: lower goes first under the ``priority`` rule.
        chain: one hash per full block of the prompt, each covering all before it (prefix cache).
        chain_after: the same of prompt and answer, for the next turn of a conversation.
    """

    __slots__ = (
        "aborted",
        "admitted_at",
        "cached",
        "chain",
        "chain_after",
        "epoch",
        "finish_step",
        "first_at",
        "generated",
        "key",
        "last_token_at",
        "max_gap_s",
        "order",
        "output",
        "phase",
        "pinned",
        "preemptions",
        "prefill_left",
        "prefill_length",
        "priority",
        "prompt",
        "since_step",
    )

    def __init__(
        self,
        key: object,
        prompt: int,
        output: int,
        priority: int = 0,
        chain: tuple[int, ...] = (),
        chain_after: tuple[int, ...] = (),
    ) -> None:
        if prompt < 1 or output < 1:
            raise BenchmarkError(
                f"sequence {key!r}: prompt {prompt} and output {output} must be at least 1 token."
            )
        self.key = key
        self.prompt = prompt
        self.output = output
        self.priority = priority
        self.chain = chain
        self.chain_after = chain_after
        self.generated = 0  # exact while not decoding; the engine knows it while decoding
        self.order = -1
        self.epoch = 0
        self.phase = Phase.WAITING
        self.prefill_length = 0
        self.prefill_left = 0
        self.pinned = 0
        self.finish_step = 0
        self.since_step = 0
        self.admitted_at = -1.0
        self.first_at = -1.0
        self.last_token_at = -1.0
        self.max_gap_s = 0.0
        self.cached = 0
        self.preemptions = 0
        self.aborted = False

    def generated_by(self, step: int) -> int:
        """Tokens generated when the engine has ended ``step`` steps."""
        if self.phase is not Phase.DECODE:
            return self.generated
        return self.output - (self.finish_step - step)


class Emission(NamedTuple):
    """What left an engine: the first token of a sequence, or its last."""

    at: float
    sequence: Sequence
    finished: bool
