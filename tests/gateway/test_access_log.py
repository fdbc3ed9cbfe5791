"""The access log: every inference request once, with what happened to it and not what it said."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from sage_gateway.config import HealthConfig, ServerLimits, parse_config
from sage_prefect.common.logs import JsonFormatter

QUIET = HealthConfig(probe_interval_s=60, failures=1000)
LOGGER = "sage_gateway.access_log"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the log says, one JSON object a line."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger(LOGGER)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def entries(lines: io.StringIO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in lines.getvalue().splitlines()]


async def test_each_request_is_a_line_without_what_was_said(lab: Any, lines: io.StringIO) -> None:
    async def fails_first(request: Any) -> None:
        request.reset()

    bad, good = await lab.peer(fails_first), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(bad, "bad"),
        lab.engine(good, "good"),
        health=QUIET,
        policy="least_outstanding",
        server=ServerLimits(access_log=True),
    )
    secret = "the-client-said-this"
    messages = [{"role": "user", "content": secret}]
    for stream in (False, True):
        answer = await gateway.chat(stream=stream, messages=messages)
        assert answer.status_code == 200
    await gateway.chat(model=secret)
    first, second, third = entries(lines)
    for entry, stream in ((first, False), (second, True)):
        assert (entry["route"], entry["model"], entry["status"]) == ("chat", "m", 200)
        assert (entry["engine"], entry["tenant"], entry["stream"]) == ("good", "default", stream)
        assert entry["output_tokens"] > 0
        assert 0 <= entry["queue_ms"] <= entry["duration_ms"]
    assert first["attempts"] == 2
    assert first["request_id"] != second["request_id"]
    assert (third["status"], third["model"], third["engine"]) == (404, "unknown", None)
    assert secret not in lines.getvalue()
    assert lab.KEY not in lines.getvalue()


async def test_without_the_setting_there_is_none(lab: Any, lines: io.StringIO) -> None:
    gateway = await lab.gateway(lab.engine(await lab.peer()))
    assert (await gateway.chat()).status_code == 200
    assert not lines.getvalue()


def test_the_setting() -> None:
    assert not parse_config(None).server.access_log
    assert parse_config({"sage_settings": {"server": {"access_log": True}}}).server.access_log
