"""The control port of mock engines: what there is, what to break, and what became of requests.

==============================  =================================================================
``GET /engines``                state of all engines, with their URLs
``GET /engines/N/requests``     the books of engine N
``POST /engines/N/faults``      order a fault: ``{"kind": "crash", "seconds": 2, "at_s": 5}``
``POST /faults``                the same for all engines, or that of its key ``engine``
``DELETE /engines/N/faults``    forget faults of answers that wait
==============================  =================================================================

Kinds: :class:`sage_bench.mock_engine.faults.Fault`, :class:`sage_bench.mock_engine.outages.Outage`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import orjson

from sage_bench.mock_engine.connection import Connection, Request, Responder
from sage_bench.mock_engine.engine import MockEngine
from sage_bench.mock_engine.outages import FaultOrder
from sage_prefect.common.errors import BenchmarkError, SageError

_HINT = "GET /engines, GET /engines/N/requests, POST or DELETE /engines/N/faults, POST /faults."


class ControlService:
    """Serves the control port.

    Args:
        engines: by number.
        url_of: where engine N listens.
        order: lets a fault happen.
    """

    def __init__(
        self,
        engines: Sequence[MockEngine],
        url_of: Callable[[int], str],
        order: Callable[[FaultOrder], None],
    ) -> None:
        self._engines, self._url_of, self._order = engines, url_of, order
        self.connections: set[Connection] = set()

    def connected(self, connection: Connection) -> None:
        self.connections.add(connection)

    def disconnected(self, connection: Connection) -> None:
        self.connections.discard(connection)

    def serve(self, request: Request, responder: Responder) -> None:
        try:
            answer = self._carry_out(request)
        except SageError as error:
            said = error.message if error.hint is None else f"{error.message} {error.hint}"
            responder.whole(400, orjson.dumps({"error": said}))
            return
        responder.whole(200, orjson.dumps(answer))

    def _carry_out(self, request: Request) -> Any:
        method, path = request.method.decode("latin-1"), request.path.decode("latin-1")
        match method, path.strip("/").split("/"):
            case "GET", ["engines"]:
                return self._states()
            case "GET", ["engines", number, "requests"]:
                return [asdict(record) for record in self._engine(number)[1].books.records]
            case "DELETE", ["engines", number, "faults"]:
                place, engine = self._engine(number)
                engine.faults.clear()
                return self._state(place)
            case "POST", ["engines", text, "faults"]:
                place, _ = self._engine(text)
                self._order(replace(FaultOrder.from_json(_parsed(request.body)), engine=place))
                return self._state(place)
            case "POST", ["faults"]:
                self._order(FaultOrder.from_json(_parsed(request.body)))
                return self._states()
        raise BenchmarkError(f"no route {method} {path!r}.", hint=_HINT)

    def _states(self) -> list[dict[str, Any]]:
        return [self._state(number) for number in range(len(self._engines))]

    def _state(self, number: int) -> dict[str, Any]:
        return {"url": self._url_of(number), **self._engines[number].state()}

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
