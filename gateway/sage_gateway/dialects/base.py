"""What a dialect (one API of clients) must say of itself, and what a translation offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sage_gateway.errors import HttpError
from sage_gateway.sse_relay import SseRelay
from sage_gateway.upstream_answer import WrappedError
from sage_gateway.usage import Usage

NO_RETRY = ((b"x-should-retry", b"false"),)
"""The SDKs of OpenAI and Anthropic repeat a 5xx unless this header tells them not to."""


class MalformedAnswer(ValueError):  # noqa: N818 - becomes a failure of the engine
    """The engine's answer is not one of its API, or says that it broke off.

    ``str()`` continues a sentence that begins with the engine's name.
    """


class UnusableAnswer(Exception):  # noqa: N818 - answered with 502; the engine did its work
    """The model's answer cannot be told in the client's API. ``str()`` is a whole sentence."""


class NotTranslatable(Exception):  # noqa: N818 - turned into an HttpError that names the engine
    """The request asks for something that the engine's API cannot express.

    Args:
        param: the field, such as ``tools[0].type``.
        why: what it asks for that cannot be had.
    """

    def __init__(self, param: str, why: str) -> None:
        super().__init__(f"{param}: {why}")
        self.param = param
        self.why = why


class StreamRelay(Protocol):
    """Passes a stream on, in the engine's bytes or in another API's events."""

    usage: Usage
    """Token counts, once they came."""
    done: bool
    """The stream's last event has come."""

    def feed(self, data: bytes) -> bytes:
        """What to send to the client now (maybe nothing).

        Raises:
            MalformedAnswer: the stream cannot be understood, or the engine broke it off.
        """

    def rest(self) -> bytes:
        """At a clean end of the engine's stream: what was held back.

        Raises:
            MalformedAnswer: as :meth:`feed`.
        """

    @property
    def complete(self) -> bool:
        """Whether the stream said that the answer is whole."""

    def broken_off(self, status: int, message: str) -> bytes:
        """The API's own end of a stream that failed."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a translated answer needs from outside: a unique text and the time."""

    tag: str
    created: int
    """Seconds since 1970."""


class Translation(Protocol):
    """One request in the words of another API of the engine."""

    path: str
    """Below the engine's base URL."""
    body: dict[str, Any]
    """To send; its ``model`` is the client's."""
    is_chat: bool
    """It is a chat completion, which may be streamed and put together again."""

    def whole(self, answer: bytes) -> bytes:
        """The engine's whole answer in the client's API.

        Raises:
            MalformedAnswer: it is not such an answer.
            UnusableAnswer: it is one, and cannot be told.
        """

    def stream(self) -> StreamRelay:
        """For the engine's stream. Only of requests that stream."""


class Dialect:
    """An API of clients. This one is OpenAI's own, which every engine speaks: nothing to do."""

    counts_in_stream = True
    """Token counts of a stream must be asked for (``stream_options.include_usage``)."""

    def scheduled(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The request as the classifier reads it (chat or completion fields, ``documents``)."""
        return body

    def check(self, body: Mapping[str, Any]) -> None:
        """Look at what every engine needs.

        Raises:
            HttpError: 400, names the field.
        """

    def translate(self, body: Mapping[str, Any], driver: str, stamp: Stamp) -> Translation | None:
        """The request in words that engines of ``driver`` know; None: there are none.

        Raises:
            NotTranslatable: this very request cannot be put so, or not without loss.
            HttpError: 400, a field makes no sense.
        """
        return None

    def relay(self, *, withhold_usage: bool) -> StreamRelay:
        """For the stream of an engine that speaks this API."""
        return SseRelay(withhold_usage=withhold_usage)

    def error(self, error: HttpError) -> bytes:
        """The body of an error answer."""
        return error.body()

    def engine_error(self, status: int, error: WrappedError) -> bytes:
        """The body of an engine's error answer."""
        return error.body


def not_served(engine: str, driver: str, route: str) -> HttpError:
    """501: neither the engine nor a translation has the route."""
    return HttpError(
        501,
        f"Engine {engine!r} (driver {driver!r}) has no {route}, and it cannot be put in terms of "
        f"the routes that it has. If it does serve {route}, say so in its configuration: "
        "model_info.routes.",
        code="route_not_supported",
        headers=NO_RETRY,
    )


def cannot_ask(engine: str, route: str, error: NotTranslatable) -> HttpError:
    """501: the engine lacks the route, and this request cannot be translated for it."""
    return HttpError(
        501,
        f"Engine {engine!r} has no {route} of its own, and {error.param!r} cannot be translated "
        f"for it: {error.why}",
        code="not_translatable",
        param=error.param,
        headers=NO_RETRY,
    )
