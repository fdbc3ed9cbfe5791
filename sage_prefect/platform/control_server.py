"""The supervisor's control socket: JSON lines over a unix socket that only its owner may use.

A connection carries one request, ``{"op": ..., ...}``. The answer is any number of
``{"progress": text}`` lines and one last line: ``{"result": ...}`` or
``{"error": {"type", "message", "hint"}}``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import orjson
from pydantic import TypeAdapter, ValidationError

from sage_prefect import __version__
from sage_prefect.common.errors import SageError, ServiceError
from sage_prefect.platform import registry
from sage_prefect.platform.service import ServiceSpec, ServiceState

log = logging.getLogger(__name__)

PROTOCOL = 1
LINE_BYTES = 16 << 20
_Specs = TypeAdapter(list[ServiceSpec])

Say = Callable[[str], None]


class Operations(Protocol):
    """What a client may ask of a supervisor."""

    async def start(
        self, specs: list[ServiceSpec], *, wait: bool, replace: bool, say: Say
    ) -> list[ServiceState]:
        """Start services."""

    async def stop(self, names: list[str], say: Say) -> list[ServiceState]:
        """Stop services."""

    async def restore(self, *, wait: bool, say: Say) -> list[ServiceState]:
        """Start again what was lost."""

    async def shut_down(self, say: Say) -> None:
        """Stop everything."""

    def states(self) -> list[ServiceState]:
        """All services."""


class ControlServer:
    """Serves :class:`Operations`; an async context manager."""

    def __init__(self, operations: Operations) -> None:
        self.path: Path = registry.socket_path()
        self.last_used = 0.0  # loop time of the last connection's end
        self._operations = operations
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """Clients connected now."""
        return len(self._connections)

    async def __aenter__(self) -> ControlServer:
        # We hold the supervisor's lock, so a socket file that is there belongs to nobody.
        self.path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self.path, limit=LINE_BYTES)
        except OSError as error:
            raise ServiceError(f"cannot listen on {self.path}: {error.strerror}.") from error
        finally:
            os.umask(before)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        self.path.unlink(missing_ok=True)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def finish(self, timeout_s: float = 2.0) -> None:
        """Accept no more and let the answers under way be written."""
        if self._server is not None:
            self._server.close()
        self.path.unlink(missing_ok=True)
        if self._connections:
            await asyncio.wait(set(self._connections), timeout=timeout_s)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # asyncio runs each connection in a task
        self._connections.add(task)
        try:
            if _peer_user(writer) == os.getuid():
                await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ValueError) as error:
            log.debug("client went away: %r", error)
        finally:
            self._connections.discard(task)
            self.last_used = asyncio.get_running_loop().time()
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if not line:
            return

        def write(message: dict[str, Any]) -> None:
            writer.write(orjson.dumps(message) + b"\n")

        try:
            request = orjson.loads(line)
            result = await self._perform(request, lambda text: write({"progress": text}))
            answer: dict[str, Any] = {"result": result}
        except SageError as error:
            answer = {
                "error": {
                    "type": type(error).__name__,
                    "message": error.message,
                    "hint": error.hint,
                }
            }
        except (orjson.JSONDecodeError, ValidationError, KeyError, TypeError) as error:
            answer = {"error": {"type": "ServiceError", "message": f"bad request: {error}"}}
        write(answer)
        await writer.drain()

    async def _perform(self, request: dict[str, Any], say: Say) -> Any:
        operation = request["op"]
        supervisor = self._operations
        if operation == "hello":
            return {"version": __version__, "protocol": PROTOCOL, "pid": os.getpid()}
        if operation == "list":
            return _dump(supervisor.states())
        if operation == "start":
            specs = _Specs.validate_python(request["specs"])
            wait, replace = bool(request.get("wait", True)), bool(request.get("replace"))
            return _dump(await supervisor.start(specs, wait=wait, replace=replace, say=say))
        if operation == "stop":
            return _dump(await supervisor.stop(list(request["names"]), say))
        if operation == "restore":
            return _dump(await supervisor.restore(wait=bool(request.get("wait", True)), say=say))
        if operation == "shutdown":
            await supervisor.shut_down(say)
            return None
        raise ServiceError(
            f"the supervisor does not know the operation {operation!r}.",
            hint="It may be of another version: run `sage down`, then try again.",
        )


def _dump(states: list[ServiceState]) -> list[dict[str, Any]]:
    return [state.model_dump(mode="json") for state in states]


def _peer_user(writer: asyncio.StreamWriter) -> int:
    connection = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _pid, user, _group = struct.unpack("3i", credentials)
    return int(user)
