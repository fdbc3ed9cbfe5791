"""Probes: what counts as an answer, and what the state of an engine follows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sage_gateway.config import HealthConfig
from sage_gateway.engines import EngineRegistry
from sage_gateway.health import HealthMonitor, complaint_of
from sage_gateway.upstream import Timeouts
from sage_prefect.control_plane.events import EngineState, FailureCause


def answering(health: int, models: int, body: bytes = b"{}") -> Any:
    async def answer(request: Any) -> None:
        await request.answer(health if request.path == "/health" else models, body)

    return answer


@pytest.mark.parametrize(
    ("health", "models", "well"),
    [
        (200, 500, True),
        (204, 500, True),
        (503, 200, False),  # llama.cpp while it loads
        (404, 200, True),
        (404, 404, True),
        (401, 401, True),  # it answers; that the key is wrong, requests will show
        (404, 503, False),
        (501, 501, True),
    ],
)
async def test_what_counts_as_an_answer(lab: Any, health: int, models: int, well: bool) -> None:
    peer = await lab.peer(answering(health, models))
    gateway = await lab.gateway(lab.engine(peer, "e1"))
    complaint = await complaint_of(gateway.gateway.engines.get("e1"), 5.0)
    assert (complaint is None) is well


async def test_an_endless_answer_does_not_hold_the_probe(lab: Any) -> None:
    async def floods(request: Any) -> None:
        await request.start_events()
        while True:
            await request.chunk(b"x" * 65536)

    peer = await lab.peer(floods)
    gateway = await lab.gateway(lab.engine(peer, "e1"))
    assert await complaint_of(gateway.gateway.engines.get("e1"), 5.0) is None
    await lab.until(lambda: not gateway.gateway.engines.get("e1").pool.open_connections)


async def test_check_at_start(lab: Any) -> None:
    good, bad = await lab.peer(), await lab.peer()
    await bad.stop()
    gateway = await lab.gateway(lab.engine(good, "good"), lab.engine(bad, "bad"))
    await gateway.gateway.check_engines()
    states = {entry.name: entry.state for entry in gateway.gateway.manager.ledger}
    assert states == {"good": EngineState.READY, "bad": EngineState.SUSPECT}
    await bad.start()
    entry = gateway.gateway.manager.ledger.get("bad")
    await lab.until(lambda: entry.state is EngineState.READY)


async def test_registering_anew_clears_suspicion(lab: Any) -> None:
    peer, other = await lab.peer(), await lab.peer()
    gateway = await lab.gateway(lab.engine(peer, "e1"))
    await peer.stop()
    assert (await gateway.chat()).status_code == 502
    assert gateway.gateway.health.is_suspect("e1")
    gateway.gateway.register(lab.engine(other, "e1"))
    assert not gateway.gateway.health.is_suspect("e1")
    assert (await gateway.chat()).status_code == 200


async def test_closing_ends_even_when_a_probe_connects_in_that_very_moment(lab: Any) -> None:
    """Until Python 3.12 ``asyncio.wait_for`` may swallow a cancellation that comes as it ends."""

    async def reset(request: Any) -> None:
        request.reset()

    peer = await lab.peer(reset)

    class Deaf:
        def report(self, engine: str, state: EngineState, detail: str = "") -> None:
            pass

    for turn in range(120):  # without the check about one in twelve hangs
        engines = EngineRegistry(Timeouts())
        engines.add(lab.engine(peer, "e"))
        health = HealthMonitor(engines, Deaf(), HealthConfig(probe_interval_s=0.001))
        health.failed("e", FailureCause.CONNECT, "the test says so")
        await asyncio.sleep(0.001 + turn % 40 * 0.0001)
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(health.close())), 5)
        engines.close()
