"""The books of all inputs: each is queued, in flight, done, failed or removed, never two."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sage_prefect.control_plane.executors.length_buckets import (
    APART,
    BatchedInput,
    BatchedRequest,
    InputState,
    LengthBuckets,
)

_QUEUED, _IN_FLIGHT, _DONE = InputState.QUEUED, InputState.IN_FLIGHT, InputState.DONE


class InputLedger:
    """Unfinished requests, their inputs, and the queue of those that wait."""

    __slots__ = ("counts", "requests", "waiting")

    def __init__(self) -> None:
        self.requests: dict[str, BatchedRequest] = {}
        """The unfinished ones by id."""
        self.waiting = LengthBuckets()
        self.counts = dict.fromkeys(InputState, 0)
        """Inputs ever opened, by where they are now."""

    def open(self, request: BatchedRequest) -> None:
        """A request comes, all its inputs queued.

        Raises:
            RuntimeError: its id is here already: the caller has a bug.
        """
        if request.request_id in self.requests:
            raise RuntimeError(f"request {request.request_id!r} is queued twice. This is a bug.")
        request.unfinished = len(request.inputs)
        self.requests[request.request_id] = request
        self.counts[_QUEUED] += len(request.inputs)
        self.waiting.add(request.inputs, apart=request.alone)

    def sent(self, inputs: Iterable[BatchedInput], batch_id: int) -> None:
        """These have left the queue for a batch."""
        number = 0
        for one in inputs:
            one.batch_id = batch_id
            number += 1
        self.counts[_QUEUED] -= number
        self.counts[_IN_FLIGHT] += number

    def done(self, inputs: Iterable[BatchedInput]) -> list[str]:
        """These were answered; returns the requests that are finished by that, now closed."""
        finished = []
        for one in inputs:
            self._move(one, _DONE)
            request = one.request
            request.unfinished -= 1
            if not request.unfinished:
                self._forget(request)
                finished.append(request.request_id)
        return finished

    def requeue(self, inputs: list[BatchedInput], *, apart: bool) -> None:
        """These come back from a batch. ``apart``: to be sent together and without others."""
        for one in inputs:
            self._move(one, _QUEUED)
        self.waiting.add(inputs, apart=apart)

    def refile(self, request: BatchedRequest) -> None:
        """A request has another band: its queued inputs go to their new place."""
        moved = [
            one
            for one in request.inputs
            # Halves of a failed batch keep theirs: they belong to others too.
            if one.sheaf is not None and (request.alone or one.sheaf.shelf.bucket != APART)
        ]
        for one in moved:
            self.waiting.withdraw(one, _QUEUED)
        self.waiting.add(moved, apart=request.alone)

    def close(self, request: BatchedRequest, state: InputState) -> list[BatchedInput]:
        """What is not done of a request becomes failed or removed.

        Returns:
            Those that were in flight: their results are not wanted any more.
        """
        inside = []
        for one in request.inputs:
            if one.state is _QUEUED:
                self.waiting.withdraw(one, _QUEUED)
            elif one.state is _IN_FLIGHT:
                inside.append(one)
            else:
                continue
            self._move(one, state)
        self._forget(request)
        return inside

    def story(self, request_id: str, engine_of: Callable[[int], str]) -> dict[str, Any]:
        """How many inputs of an unfinished request are where, and in which engines.

        Args:
            engine_of: name of the engine that has a batch.
        """
        request = self.requests.get(request_id)
        if request is None:
            return {}
        states = [one.state for one in request.inputs]
        inside = {engine_of(one.batch_id) for one in request.inputs if one.state is _IN_FLIGHT}
        return {
            "inputs": len(states),
            **{state.value: states.count(state) for state in (_QUEUED, _IN_FLIGHT, _DONE)},
            "engines": sorted(inside),
        }

    def _forget(self, request: BatchedRequest) -> None:
        del self.requests[request.request_id]
        # Inputs point to their request: without the cycle both go at once, and no collection has
        # to walk over all that is queued.
        request.inputs = []

    def _move(self, one: BatchedInput, state: InputState) -> None:
        self.counts[one.state] -= 1
        self.counts[state] += 1
        one.state = state
