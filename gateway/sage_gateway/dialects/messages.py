"""The dialects of Anthropic's Messages API: messages, and counting their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from sage_gateway.dialects.base import Dialect, Stamp, StreamRelay
from sage_gateway.dialects.messages_answer import error_object, whole_message
from sage_gateway.dialects.messages_request import chat_request, check
from sage_gateway.dialects.messages_stream import MessagesStream
from sage_gateway.dialects.native_stream import NativeMessages
from sage_gateway.dialects.scheduled import short_work, urgency
from sage_gateway.errors import HttpError
from sage_gateway.upstream_answer import WrappedError


class MessagesOverChat:
    """A Messages request that goes to ``/chat/completions``."""

    path = "/chat/completions"
    is_chat = True

    def __init__(self, body: Mapping[str, Any], stamp: Stamp) -> None:
        self.body = chat_request(body)
        self._model: str = body["model"]
        self._stamp = stamp

    def whole(self, answer: bytes) -> bytes:
        """The message of a whole chat answer."""
        return whole_message(answer, self._model, self._stamp)

    def stream(self) -> StreamRelay:
        """Message events out of a chat stream."""
        return MessagesStream(self._model, self._stamp)


class AnthropicDialect(Dialect):
    """What all routes of Anthropic's API share: the shape of errors."""

    counts_in_stream = False

    def error(self, error: HttpError) -> bytes:
        """``{"type": "error", "error": {...}}``."""
        return error_object(error.status, error.message)

    def engine_error(self, status: int, error: WrappedError) -> bytes:
        """As it came when it has Anthropic's shape, else put into it."""
        content = orjson.loads(error.body)
        if isinstance(content, dict) and content.get("type") == "error":
            return error.body
        return error_object(status, error.message)


class MessagesDialect(AnthropicDialect):
    """``/v1/messages``."""

    def scheduled(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """As a chat request, as far as lengths, prefixes and urgency go."""
        wanted = {name: body.get(name) for name in ("max_tokens", "stream", "tools")}
        return {**urgency(body), **wanted, "messages": _said(body)}

    def check(self, body: Mapping[str, Any]) -> None:
        """The API's required fields."""
        check(body)

    def translate(
        self, body: Mapping[str, Any], driver: str, stamp: Stamp
    ) -> MessagesOverChat | None:
        """As a chat completion."""
        return MessagesOverChat(body, stamp)

    def relay(self, *, withhold_usage: bool) -> StreamRelay:
        """For an engine that speaks the Messages API."""
        return NativeMessages()


class CountTokensDialect(AnthropicDialect):
    """``/v1/messages/count_tokens``: only an engine that has it knows its chat template."""

    def scheduled(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The prompt, and no answer."""
        return short_work(body, messages=_said(body), tools=body.get("tools"))


def _said(body: Mapping[str, Any]) -> list[Any]:
    system, said = body.get("system"), body["messages"]
    return said if system is None else [{"role": "system", "content": system}, *said]
