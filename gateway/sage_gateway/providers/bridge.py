"""The gateway's end: starts the process of the litellm library and starts it again when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping

import orjson

from sage_gateway.engines import ProviderTarget, Via

log = logging.getLogger(__name__)

_FIRST_DELAY_S, _MOST_DELAY_S = 0.5, 30.0
_STOP_S = 10.0


class ProviderBridge:
    """A listening socket that outlives the process behind it: calls wait in its backlog while that
    one starts, or starts again.

    Args:
        grace_s: how long calls in a process that is replaced may go on.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._token = secrets.token_urlsafe(32)
        self._deployments: Mapping[str, ProviderTarget] = {}
        self._running: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens, on loopback."""
        return int(self._listener.getsockname()[1])

    def via(self, engine: str) -> Via:
        """How an engine of this name is reached."""
        return Via(f"http://127.0.0.1:{self.port}/e/{engine}/v1", self._token)

    def serve(self, deployments: Mapping[str, ProviderTarget]) -> None:
        """Serve these, by engine name. Where they are others than before, a fresh process takes new
        calls and the old one finishes its own."""
        if deployments == self._deployments:
            return
        self._deployments = dict(deployments)
        if self._running is not None:
            self._leave(self._running)
            self._running = None
        if deployments:
            self._running = asyncio.get_running_loop().create_task(self._keep_running())

    async def close(self) -> None:
        """End the processes and free the port."""
        if self._running is not None:
            self._leave(self._running)
        await asyncio.gather(*self._leaving, return_exceptions=True)
        self._listener.close()

    # -- inside ---------------------------------------------------------------------------

    def _leave(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _keep_running(self) -> None:
        delay_s = _FIRST_DELAY_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            code = await self._run()
            if loop.time() - began > _MOST_DELAY_S:
                delay_s = _FIRST_DELAY_S
            log.error(
                "the process of the litellm library ended",
                extra={"fields": {"exit_code": code, "again_in_s": delay_s}},
            )
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _MOST_DELAY_S)

    async def _run(self) -> int:
        """One process, until it ends."""
        fd = self._listener.fileno()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sage_gateway.providers.server", str(fd), str(self._grace_s)),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=(fd,),
            start_new_session=True,  # Ctrl-C is the gateway's to act on
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )
        try:
            await self._tell(process)
            return await process.wait()
        finally:
            # It ends by itself, too, when its standard input does: no process outlives the gateway.
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            if process.returncode is None:
                try:
                    await asyncio.wait_for(process.wait(), self._grace_s + _STOP_S)
                except (TimeoutError, asyncio.TimeoutError):  # two types before Python 3.11
                    process.kill()
                    await process.wait()

    async def _tell(self, process: asyncio.subprocess.Process) -> None:
        """Keys go by the pipe: the command line and the environment can be read by others."""
        said = {
            "token": self._token,
            "deployments": {
                name: {"provider": target.provider, "settings": dict(target.settings)}
                for name, target in self._deployments.items()
            },
        }
        assert process.stdin is not None
        process.stdin.write(orjson.dumps(said) + b"\n")
        with contextlib.suppress(ConnectionError):  # it has ended; wait() says so
            await process.stdin.drain()
