"""What a live gateway was told and decided, recorded and replayed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sage_gateway.engines import ServedModel
from sage_prefect.control_plane.events import Arrival, BatchDone, Done, Failed, Limits
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.platform.event_log import EventLogWriter, read_log, replay

SECRET = "a prompt that nobody else may read " * 20
LIMITS = Limits(max_queued_requests=3, queue_timeout_s=5.0)


@pytest.mark.parametrize("policy", ["least_outstanding", "hybrid"])
async def test_a_live_log_replays(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    decide = ControlPlaneManager.handle
    with EventLogWriter(tmp_path / "log") as writer, monkeypatch.context() as patch:

        def recorded(manager: ControlPlaneManager, event: Any, now: float) -> Any:
            actions = decide(manager, event, now)
            writer.record(event, now, actions)
            return actions

        patch.setattr(ControlPlaneManager, "handle", recorded)

        async def dies(request: Any) -> None:
            if request.method == "GET":
                await lab.chat(request)
            else:
                request.reset()

        good, bad = await lab.peer(), await lab.peer(dies)
        gateway = await lab.gateway(
            lab.engine(good, "good", max_concurrency=1),
            lab.engine(bad, "bad", max_concurrency=1),
            lab.engine(good, "embed", max_concurrency=1, models=(ServedModel("e", "embedding"),)),
            policy=policy,
            scheduling=LIMITS,
        )
        messages = [{"role": "user", "content": SECRET}]
        calls = [
            asyncio.ensure_future(gateway.chat(messages=messages, stream=i % 2 == 0))
            for i in range(12)
        ]
        calls += [
            asyncio.ensure_future(
                gateway.client.post("/v1/embeddings", json={"model": "e", "input": SECRET + str(i)})
            )
            for i in range(3)
        ]
        for call in calls[::5]:
            await asyncio.sleep(0)
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await gateway.chat(messages=messages)
        assert any(getattr(answer, "status_code", 0) == 200 for answer in answers)
        await lab.until(lambda: gateway.gateway.manager.running == 0)
        await lab.close()
    assert writer.stopped is None
    log = read_log(tmp_path / "log")
    told = {type(step.event) for step in log}
    assert {Arrival, Done, Failed} <= told
    assert (BatchDone in told) is (policy == "hybrid")
    replayed = replay(log, lambda: ControlPlaneManager(policy, LIMITS))
    assert replayed.difference is None, str(replayed.difference)
    assert replayed.steps == writer.steps
    assert SECRET[:20] not in (tmp_path / "log").read_text(encoding="ascii")
