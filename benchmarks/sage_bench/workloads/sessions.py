"""Conversations: each turn's prompt is the whole history before it, so that prefixes grow.

Modelled on the Mooncake conversation trace: most conversations have one turn, a few have many; the
gap between turns is lognormal (median 123 s, p90 480 s); every request begins with a system prompt
that others share. Turns come at scheduled times, whatever the engine does (open loop).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sage_bench.workloads.arrivals import RateSchedule, arrival_times
from sage_bench.workloads.client_request import ClientRequest, Traffic
from sage_bench.workloads.lengths import LengthTable
from sage_bench.workloads.tenants import ZipfTenants
from sage_prefect.common.errors import SettingsError

BLOCK_TOKENS = 64
_SESSION_SHIFT = 24  # a chain hash: who owns the block, then its place


@dataclass(frozen=True)
class Conversations:
    """Shape of the sessions.

    Args:
        one_turn: share of sessions with a single turn; the others have geometrically many.
        mean_more_turns: mean number of further turns of those.
        gap_median_s, gap_sigma: lognormal gap between turns.
        turn_tokens: mean new tokens that a user adds at each turn after the first (exponential).
        system_prompts: how many system prompts there are, Zipf 1.2 among them; 1: one hot prefix.
        system_tokens: length of each, at the head of every prompt.
        max_prompt: a session ends before its prompt outgrows this.

    Raises:
        SettingsError: a value is out of range.
    """

    one_turn: float = 0.69
    mean_more_turns: float = 2.03
    gap_median_s: float = 123.0
    gap_sigma: float = 1.06
    turn_tokens: float = 400.0
    system_prompts: int = 1
    system_tokens: int = 512
    max_prompt: int = 120_000

    def __post_init__(self) -> None:
        if not (0 <= self.one_turn <= 1 and self.mean_more_turns >= 1 and self.gap_median_s > 0):
            raise SettingsError(
                f"sessions: one_turn={self.one_turn} must be 0 to 1, mean_more_turns="
                f"{self.mean_more_turns} at least 1, gap_median_s={self.gap_median_s} above 0."
            )
        if self.system_prompts < 1 or self.system_tokens < 0 or self.turn_tokens < 1:
            raise SettingsError(
                f"sessions: system_prompts={self.system_prompts} and turn_tokens="
                f"{self.turn_tokens} must be at least 1, system_tokens={self.system_tokens} "
                "at least 0."
            )


def chain(owner: int, system: int, system_tokens: int, tokens: int) -> tuple[int, ...]:
    """Chain hashes of the first ``tokens`` tokens of a conversation's history."""
    shared = min(system_tokens, tokens) // BLOCK_TOKENS
    # Odd owners are conversations, even ones system prompts.
    return tuple(((2 * system) << _SESSION_SHIFT) | i for i in range(shared)) + tuple(
        ((2 * owner + 1) << _SESSION_SHIFT) | i for i in range(shared, tokens // BLOCK_TOKENS)
    )


def conversation_requests(
    traffic: Traffic,
    starts: RateSchedule,
    shape: Conversations,
    lengths: LengthTable,
    tenants: ZipfTenants,
    rng: np.random.Generator,
    until_s: float,
) -> Iterator[ClientRequest]:
    """Requests of conversations that start by ``starts``, by rising time, until ``until_s``."""
    systems = ZipfTenants(shape.system_prompts)
    due: list[tuple[float, int, ClientRequest]] = []
    begins = arrival_times(starts, 1.0, rng, until_s)
    serial = 0
    for owner, begin in enumerate(begins):
        while due and due[0][0] <= begin:
            yield heapq.heappop(due)[2]
        tenant = tenants.draw(rng, 1)[0]
        system = int(systems.draw(rng, 1)[0].rpartition("-")[2])
        turns = 1
        if rng.random() >= shape.one_turn:
            turns += int(rng.geometric(1 / shape.mean_more_turns))
        at, history = begin, shape.system_tokens
        for turn in range(turns):
            prompts, outputs = lengths.draw(rng, 1)
            new = int(prompts[0]) if not turn else max(1, round(rng.exponential(shape.turn_tokens)))
            prompt, output = history + new, int(outputs[0])
            if prompt > shape.max_prompt or at >= until_s:
                break
            history = prompt + output
            request = ClientRequest(
                at,
                traffic,
                tenant,
                prompt,
                output,
                session=f"{traffic.name}-{owner}",
                chain=chain(owner, system, shape.system_tokens, prompt),
                chain_after=chain(owner, system, shape.system_tokens, history),
            )
            heapq.heappush(due, (at, serial, request))
            serial += 1
            at += shape.gap_median_s * float(np.exp(shape.gap_sigma * rng.standard_normal()))
    while due:
        yield heapq.heappop(due)[2]
