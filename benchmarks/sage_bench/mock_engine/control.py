"""The control port of mock engines: what there is, what to break, and what became of requests.

===========================================  ====================================================
``GET /engines``                             state of all engines
``GET /engines/N/requests``                  the books of engine N
``POST /engines/N/faults``                   a :class:`~sage_bench.mock_engine.faults.Fault`
``DELETE /engines/N/faults``                 forget those that wait
``POST /engines/N/slow`` ``{"factor": 2}``   all takes twice as long; 1: as usual
``POST /engines/N/stall`` ``{"seconds": 5}`` nothing moves for so long
``POST /engines/N/cold`` ``{"seconds": 5}``  503 for so long
``POST /engines/N/crash`` ``{"down_s": 1, "cold_s": 5}``  dies; listens again, cold, after down_s
===========================================  ====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from sage_bench.mock_engine.api import Refusal
from sage_bench.mock_engine.connection import Connection, Request, Responder
from sage_bench.mock_engine.engine import MockEngine, checked_seconds
from sage_bench.mock_engine.faults import Fault
from sage_prefect.common.errors import BenchmarkError, SageError, UnknownNameError

Crash = Callable[[int, float, float], None]
_COMMANDS = ("cold", "crash", "faults", "requests", "slow", "stall")


class ControlService:
    """Serves the control port.

    Args:
        engines: by number.
        crash: ``(number, down_s, cold_s)``: ends an engine's listening for a while.
    """

    def __init__(self, engines: Sequence[MockEngine], crash: Crash) -> None:
        self._engines, self._crash = engines, crash
        self.connections: set[Connection] = set()

    def connected(self, connection: Connection) -> None:
        self.connections.add(connection)

    def disconnected(self, connection: Connection) -> None:
        self.connections.discard(connection)

    def serve(self, request: Request, responder: Responder) -> None:
        try:
            answer = self._carry_out(request)
        except (SageError, Refusal) as error:
            responder.whole(400, orjson.dumps({"error": str(error)}))
            return
        responder.whole(200, orjson.dumps(answer))

    def _carry_out(self, request: Request) -> Any:
        parts = request.path.decode("latin-1").strip("/").split("/")
        if parts[0] != "engines" or len(parts) not in (1, 3):
            raise BenchmarkError(
                f"no route {request.path.decode('latin-1')!r}.",
                hint="GET /engines, or /engines/N/ with one of: " + ", ".join(_COMMANDS) + ".",
            )
        if len(parts) == 1:
            return [engine.state() for engine in self._engines]
        number, engine = self._engine(parts[1])
        command, method = parts[2], request.method
        if command not in _COMMANDS:
            raise UnknownNameError("command for an engine", command, _COMMANDS)
        if command == "requests":
            return [asdict(record) for record in engine.books.records]
        if command == "faults" and method == b"DELETE":
            engine.faults.clear()
        elif method != b"POST":
            raise BenchmarkError(f"{command} must be posted, not {method.decode('latin-1')}.")
        else:
            self._order(number, engine, command, _parsed(request.body))
        return engine.state()

    def _order(self, number: int, engine: MockEngine, command: str, content: Any) -> None:
        if command == "faults":
            engine.faults.add(Fault.from_json(content))
        elif command == "slow":
            engine.slow(_value(content, "factor"))
        elif command == "stall":
            engine.stall(_value(content, "seconds"))
        elif command == "cold":
            engine.cold(_value(content, "seconds"))
        else:
            down_s = checked_seconds("crash", _value(content, "down_s", 0.0))
            cold_s = checked_seconds("crash", _value(content, "cold_s", 0.0))
            self._crash(number, down_s, cold_s)

    def _engine(self, text: str) -> tuple[int, MockEngine]:
        number = int(text) if text.isascii() and text.isdigit() else -1
        if not 0 <= number < len(self._engines):
            raise BenchmarkError(
                f"no engine {text!r}.", hint=f"There are 0 to {len(self._engines) - 1}."
            )
        return number, self._engines[number]


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise BenchmarkError(f"the body is not JSON: {error}.") from None


def _value(content: Any, key: str, default: float | None = None) -> float:
    found = content.get(key, default) if isinstance(content, dict) else None
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise BenchmarkError(f"the body needs a number {key!r}, not {found!r}.")
    return float(found)
