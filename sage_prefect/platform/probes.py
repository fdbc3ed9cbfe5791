"""Ask a probe: one attempt, with a time limit, and a sentence when the answer is no."""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Awaitable
from pathlib import Path

from sage_prefect.platform import http_request
from sage_prefect.platform.http_request import RequestError
from sage_prefect.platform.service import Probe


async def ask(probe: Probe, *, started: float = 0.0) -> str | None:
    """None when the service answers as the probe wants it, else why not.

    Args:
        probe: with its placeholders filled.
        started: when the process started (seconds since the epoch), for ``file`` probes.
    """
    try:
        return await asyncio.wait_for(_ask(probe, started), probe.timeout_s)
    except (TimeoutError, asyncio.TimeoutError):  # two types before Python 3.11
        return f"{probe.target}: no answer within {probe.timeout_s:g} s"


async def _ask(probe: Probe, started: float) -> str | None:
    if probe.kind == "http":
        return await _ask_http(probe)
    if probe.kind == "tcp":
        host, _, port = probe.target.rpartition(":")
        return await _connects(asyncio.open_connection(host, int(port)), probe.target)
    if probe.kind == "unix":
        return await _connects(asyncio.open_unix_connection(probe.target), probe.target)
    if probe.kind == "file":
        return _newer_file(Path(probe.target), started)
    return await asyncio.to_thread(_call, probe.target)


def _call(target: str) -> str | None:
    module, _, function = target.partition(":")
    try:
        answer = getattr(importlib.import_module(module), function)()
    except Exception as error:  # noqa: BLE001 - whatever it raises is its answer
        return f"{target}: {type(error).__name__}: {error}"
    return None if answer is None else f"{target}: {answer}"


async def _ask_http(probe: Probe) -> str | None:
    try:
        answer = await http_request.request(
            "GET", probe.target, headers=probe.headers, timeout_s=probe.timeout_s
        )
    except RequestError as error:
        return f"{probe.target}: {error}"
    if answer.status not in probe.statuses:
        return f"{probe.target}: status {answer.status}"
    if probe.matches is not None and not re.search(probe.matches, answer.text):
        return f"{probe.target}: the answer does not match {probe.matches!r}"
    if probe.absent is not None and re.search(probe.absent, answer.text):
        return f"{probe.target}: the answer still matches {probe.absent!r}"
    return None


async def _connects(
    opening: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]], target: str
) -> str | None:
    try:
        _, writer = await opening
    except OSError as error:
        return f"{target}: {error.strerror or error}"
    writer.close()
    return None


def _newer_file(file: Path, started: float) -> str | None:
    try:
        modified = file.stat().st_mtime
    except FileNotFoundError:
        return f"{file} does not exist yet"
    # File systems may store times coarser than the clock.
    return None if modified >= started - 1.0 else f"{file} is from an earlier run"
