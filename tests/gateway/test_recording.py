"""What a live gateway was told and decided, recorded and replayed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sage_gateway.config import parse_config
from sage_gateway.engines import ServedModel
from sage_gateway.recording import RecordingConfig
from sage_prefect.common.errors import CorruptFileError, SettingsError, UnknownNameError
from sage_prefect.control_plane.events import (
    Arrival,
    BandsChanged,
    BatchDone,
    Done,
    EngineAdded,
    Failed,
    Limits,
    TenantsChanged,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.platform.event_log import LEAST_MAX_BYTES, read_log, replay
from sage_prefect.platform.recorded_manager import manager_of, settings_of

SECRET = "a prompt that nobody else may read " * 20
LIMITS = Limits(max_queued_requests=3, queue_timeout_s=5.0)


@pytest.mark.parametrize("policy", ["least_outstanding", "hybrid"])
async def test_a_live_log_replays(lab: Any, tmp_path: Path, policy: str) -> None:
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
        recording=RecordingConfig(tmp_path / "log"),
    )
    messages = [{"role": "user", "content": SECRET}]
    calls = [
        asyncio.ensure_future(gateway.chat(messages=messages, stream=i % 2 == 0)) for i in range(12)
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
    assert gateway.metric("sage_gateway_recording") == 1
    await lab.close()
    log = read_log(tmp_path / "log")
    steps = list(log)
    assert {BandsChanged, TenantsChanged, EngineAdded} <= {type(step.event) for step in steps[:4]}
    told = {type(step.event) for step in steps}
    assert {Arrival, Done, Failed} <= told
    assert (BatchDone in told) is (policy == "hybrid")
    replayed = replay(log, lambda: manager_of(log.header.settings))
    assert replayed.difference is None, str(replayed.difference)
    assert replayed.steps == len(steps)
    assert SECRET[:20] not in (tmp_path / "log").read_text(encoding="ascii")


async def test_a_full_log_stops_the_recording_and_nothing_else(
    lab: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "log"
    gateway = await lab.gateway(
        lab.engine(await lab.peer()), recording=RecordingConfig(file, LEAST_MAX_BYTES)
    )
    while gateway.metric("sage_gateway_recording"):
        assert (await gateway.chat()).status_code == 200
    recorded = gateway.metric("sage_gateway_recorded_events_total")
    for _ in range(5):
        assert (await gateway.chat()).status_code == 200
    assert gateway.metric("sage_gateway_recorded_events_total") == recorded
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "has reached its 65536 bytes. Serving goes on." in errors[0].getMessage()
    assert file.stat().st_size <= LEAST_MAX_BYTES
    log = read_log(file)
    assert replay(log, lambda: manager_of(log.header.settings)).difference is None


async def test_a_rotating_log_keeps_the_latest(lab: Any, tmp_path: Path) -> None:
    file = tmp_path / "log"
    config = RecordingConfig(file, LEAST_MAX_BYTES, "rotate")
    gateway = await lab.gateway(lab.engine(await lab.peer()), recording=config)
    while not read_log(file).header.first_step:
        assert (await gateway.chat()).status_code == 200
    assert gateway.metric("sage_gateway_recording") == 1
    await lab.close()
    last = list(read_log(file))[-1]
    assert isinstance(last.event, Done)
    with pytest.raises(CorruptFileError, match="only be replayed from the first"):
        replay(read_log(file), ControlPlaneManager)


async def test_nothing_is_recorded_by_default(lab: Any) -> None:
    gateway = await lab.gateway(lab.engine(await lab.peer()))
    await gateway.chat()
    assert gateway.gateway.recorder is None
    assert gateway.metric("sage_gateway_recording") == 0


def test_settings() -> None:
    given = {"file": "events.jsonl", "max_bytes": 1 << 20, "when_full": "rotate", "flush_s": 5}
    read = parse_config({"sage_settings": {"recording": given}}, {}).recording
    assert read == RecordingConfig(Path("events.jsonl"), 1 << 20, "rotate", 5.0)
    assert parse_config({}, {}).recording.file is None
    for wrong in ({"max_bytes": 10}, {"when_full": "explode"}, {"files": "x"}, {"file": 3}):
        with pytest.raises(SettingsError, match="recording"):
            parse_config({"sage_settings": {"recording": wrong}}, {})


def test_a_log_that_names_no_manager() -> None:
    with pytest.raises(CorruptFileError, match="which policy and seed"):
        manager_of({"policy": "fifo"})
    with pytest.raises(CorruptFileError, match=r"LimitsChanged\.limits"):
        manager_of({"policy": "fifo", "seed": 0, "limits": 3})
    with pytest.raises(UnknownNameError):
        manager_of({**settings_of(ControlPlaneManager()), "policy": "fifa"})
