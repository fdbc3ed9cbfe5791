"""Reading and checking a request's body: bounded in size and time, parsed once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from sage_gateway.errors import HttpError

# A body may take its time as long as it moves: each stretch of so many bytes earns a second.
_SLOWEST_BYTES_PER_S = 16 * 1024
# Names are kept, compared and recorded; a prompt that lands here by mistake is not.
_LONGEST_MODEL = 1024
# Engines that score pictures take them as objects.
OBJECTS_TOO = frozenset({"query", "text_1", "queries", "data_1"})


class BodyTimer:
    """Time for a body to come: ``timeout_s`` to begin with, and a second for each stretch of bytes.

    Args:
        wake: called when the time that was granted at the last look is over; look again then.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, timeout_s: float, wake: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._started = loop.time()
        self._wake = wake
        self._timer: asyncio.TimerHandle | None = None

    def late(self, size: int) -> bool:
        """Whether ``size`` bytes are too few by now."""
        ends = self._started + self._timeout_s + size / _SLOWEST_BYTES_PER_S
        if self._loop.time() >= ends:
            return True
        self.stop()
        # uvloop's clock counts milliseconds: a timer may ring a little early.
        self._timer = self._loop.call_at(ends + 0.002, self._wake)
        return False

    def stop(self) -> None:
        """The body has come, or nobody waits for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def parse_body(raw: bytes, required: tuple[str, ...]) -> dict[str, Any]:
    """Parse and check a request.

    Args:
        raw: the body as sent.
        required: fields besides ``model`` of which the route needs one.

    Raises:
        HttpError: 400, naming the place or the field.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if not raw.strip():
            raise HttpError(
                400, "The body is empty; it must be JSON.", code="invalid_json"
            ) from None
        raise HttpError(
            400,
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}.",
            code="invalid_json",
        ) from None
    if not isinstance(body, dict):
        raise HttpError(
            400,
            f"The body is a JSON {_json_kind(body)}; it must be an object.",
            code="invalid_json",
        )
    model = body.get("model")
    if model is None:
        raise HttpError(
            400,
            "The field 'model' is missing. GET /v1/models lists the models.",
            code="missing_field",
            param="model",
        )
    if not isinstance(model, str) or not model:
        raise _wrong("model", model, "a text that is not empty")
    if len(model) > _LONGEST_MODEL:
        raise HttpError(
            400,
            f"The field 'model' has {len(model)} characters; a name has at most {_LONGEST_MODEL}.",
            code="invalid_field",
            param="model",
        )
    name = next((name for name in required if body.get(name) is not None), None)
    if name is None:
        raise HttpError(
            400,
            f"The field {' or '.join(map(repr, required))} is missing.",
            code="missing_field",
            param=required[0],
        )
    value = body[name]
    if name == "messages" and (not isinstance(value, list) or not value):
        raise _wrong("messages", value, "a list of at least one message")
    known = (str, list, dict) if name in OBJECTS_TOO else (str, list)
    if name != "messages" and not isinstance(value, known):
        raise _wrong(name, value, "a text or a list")
    if not isinstance(body.get("stream"), (bool, type(None))):
        raise _wrong("stream", body["stream"], "true or false")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _wrong("stream_options", options, "an object")
    return body


def _wrong(param: str, value: Any, expected: str) -> HttpError:
    kind = _json_kind(value)
    shown = "an empty list" if value == [] else "empty" if value == "" else f"a JSON {kind}"
    return HttpError(
        400,
        f"The field {param!r} is {shown}; it must be {expected}.",
        code="invalid_field",
        param=param,
    )


def _json_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = {dict: "object", list: "array", str: "string", int: "number", float: "number"}
    return kinds.get(type(value), "null")


def body_too_large(max_bytes: int) -> HttpError:
    """The answer to a body over the limit."""
    return HttpError(
        413,
        f"The body is larger than {max_bytes} bytes, the limit of this gateway.",
        code="body_too_large",
    )
