"""Settings of a simulated LLM engine, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sage_bench.simulation.step_profile import StepProfile
from sage_prefect.common.errors import SettingsError


@dataclass(frozen=True, slots=True)
class LlmEngineSpec:
    """Settings of an engine, under vLLM's names.

    Raises:
        SettingsError: a limit is below 1, or ``max_num_seqs`` is above the token budget.
    """

    profile: StepProfile
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    block_tokens: int = 64
    """Tokens per hash of :attr:`Sequence.chain`."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_num_seqs <= self.max_num_batched_tokens:
            raise SettingsError(
                f"max_num_seqs={self.max_num_seqs} must be from 1 to "
                f"max_num_batched_tokens={self.max_num_batched_tokens}."
            )
        if self.scheduling not in ("fcfs", "priority") or self.block_tokens < 1:
            raise SettingsError(
                f"scheduling={self.scheduling!r} must be fcfs or priority, "
                f"block_tokens={self.block_tokens} at least 1."
            )
