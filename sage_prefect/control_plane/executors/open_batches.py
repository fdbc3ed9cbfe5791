"""Batches inside engines, and whose results are still wanted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sage_prefect.control_plane.executors.batch_draft import BatchDraft
from sage_prefect.control_plane.executors.embedding_engine import EmbeddingEngine
from sage_prefect.control_plane.executors.length_buckets import BatchedInput, InputState


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What a failed batch leads to."""

    failed: tuple[str, ...] = ()
    """Requests that have failed; none of their inputs is waited for any more."""
    requeued: int = 0
    """Inputs that will be sent again."""
    orphaned: tuple[int, ...] = ()
    """Batches still in an engine whose results nobody wants now: their calls may be closed."""


@dataclass(slots=True)
class Batch:
    """One call under way."""

    engine: EmbeddingEngine
    draft: BatchDraft
    apart: bool
    """It was not to be mixed with other inputs."""
    cost_s: float
    """Engine-seconds that it is predicted to take, times the engine's price."""
    wanted: int = 0
    """Inputs whose requests still wait for it."""

    def live(self) -> list[list[BatchedInput]]:
        """Its parts without the inputs that nobody waits for."""
        parts = (
            [one for one in part if one.state is InputState.IN_FLIGHT] for part in self.draft.parts
        )
        return [part for part in parts if part]

    def charges(self) -> dict[str, float]:
        """Its cost, divided among its requests by the tokens of their inputs; equals pay alike."""
        tokens: dict[str, int] = {}
        for part in self.draft.parts:
            for one in part:
                name = one.request.request_id
                tokens[name] = tokens.get(name, 0) + one.tokens
        each = self.cost_s / sum(tokens.values())
        return {name: each * number for name, number in tokens.items()}


class OpenBatches:
    """The batches that are not answered yet, by number."""

    __slots__ = ("_batches",)

    def __init__(self) -> None:
        self._batches: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def open(self, batch_id: int, batch: Batch) -> None:
        """A batch was sent."""
        batch.wanted = sum(len(part) for part in batch.draft.parts)
        self._batches[batch_id] = batch

    def close(self, batch_id: int) -> Batch | None:
        """A batch has ended; None: it is not known, or has ended before."""
        return self._batches.pop(batch_id, None)

    def __getitem__(self, batch_id: int) -> Batch:
        return self._batches[batch_id]

    def engine_of(self, batch_id: int) -> str:
        """Name of the engine that has a batch."""
        return self._batches[batch_id].engine.name

    def unwant(self, inputs: Iterable[BatchedInput]) -> tuple[int, ...]:
        """Nobody waits for these any more; returns the batches that are all unwanted by that."""
        orphaned = []
        for one in inputs:
            batch = self._batches.get(one.batch_id)
            if batch is not None:
                batch.wanted -= 1
                if not batch.wanted:
                    orphaned.append(one.batch_id)
        return tuple(orphaned)
