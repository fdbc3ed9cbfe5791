"""The dialect of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_gateway.dialects.base import Dialect, Stamp, StreamRelay
from sage_gateway.dialects.native_stream import NativeResponses
from sage_gateway.dialects.responses_answer import whole_response
from sage_gateway.dialects.responses_request import chat_request
from sage_gateway.dialects.responses_stream import ResponsesStream
from sage_gateway.dialects.scheduled import urgency


class ResponsesOverChat:
    """A Responses request that goes to ``/chat/completions``."""

    path = "/chat/completions"
    is_chat = True

    def __init__(self, body: Mapping[str, Any], stamp: Stamp) -> None:
        self.body = chat_request(body)
        self._asked = body
        self._stamp = stamp

    def whole(self, answer: bytes) -> bytes:
        """The response of a whole chat answer."""
        return whole_response(answer, self._asked, self._stamp)

    def stream(self) -> StreamRelay:
        """Response events out of a chat stream."""
        return ResponsesStream(self._asked, self._stamp)


class ResponsesDialect(Dialect):
    """``/v1/responses``."""

    counts_in_stream = False

    def scheduled(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """As a chat request, as far as lengths, prefixes and urgency go."""
        given = body["input"]
        said = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if isinstance(instructions := body.get("instructions"), str):
            said = [{"role": "system", "content": instructions}, *said]
        read = {"messages": said, "max_tokens": body.get("max_output_tokens")}
        return {**urgency(body), **read, "tools": body.get("tools"), "stream": body.get("stream")}

    def translate(
        self, body: Mapping[str, Any], driver: str, stamp: Stamp
    ) -> ResponsesOverChat | None:
        """As a chat completion."""
        return ResponsesOverChat(body, stamp)

    def relay(self, *, withhold_usage: bool) -> StreamRelay:
        """For an engine that speaks the Responses API."""
        return NativeResponses()
