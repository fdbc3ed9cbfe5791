"""A chat answer as Anthropic's message, whole; errors in Anthropic's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from sage_gateway.dialects.base import MalformedAnswer, Stamp, UnusableAnswer
from sage_gateway.dialects.chat_events import choice_of, texts_of, tool_calls_of
from sage_gateway.usage import usage_of

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_object(status: int, message: str) -> bytes:
    """``{"type": "error", "error": {"type", "message"}}``."""
    fitting = "invalid_request_error" if status < 500 or status == 501 else "api_error"
    error = {"type": _ERROR_TYPES.get(status, fitting), "message": message}
    return orjson.dumps({"type": "error", "error": error})


def error_event(status: int, message: str) -> bytes:
    """The last event of a stream that broke off."""
    return b"event: error\ndata: %b\n\n" % error_object(status, message)


def skeleton(model: str, stamp: Stamp) -> dict[str, Any]:
    """A message that has said nothing yet."""
    return {
        "id": f"msg_{stamp.tag}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": message_usage(None),
    }


def whole_message(answer: bytes, model: str, stamp: Stamp) -> bytes:
    """The message of a whole chat answer.

    Raises:
        MalformedAnswer: it is no chat answer.
        UnusableAnswer: it calls a tool with arguments that are no object.
    """
    try:
        chat = orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise MalformedAnswer("sent an answer that is not JSON") from None
    choice = choice_of(chat) if isinstance(chat, dict) else None
    if choice is None or not isinstance(choice.get("message"), Mapping):
        raise MalformedAnswer("sent an answer without a message")
    said = choice["message"]
    message = skeleton(model, stamp)
    blocks: list[dict[str, Any]] = message["content"]
    thought, plain, refusal = texts_of(said)
    if thought:
        blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
    calls = tool_calls_of(said)
    if plain or refusal:
        blocks.append({"type": "text", "text": plain or refusal})
    for number, call in enumerate(calls):
        function = call["function"]
        block = tool_block(stamp, number, call.get("id"), function.get("name"))
        cut = choice.get("finish_reason") == "length" and number == len(calls) - 1
        blocks.append({**block, "input": arguments_of(function.get("arguments"), cut=cut)})
    message.update(stop_of(choice, bool(calls)))
    message["usage"] = message_usage(chat.get("usage"))
    return orjson.dumps(message)


def tool_block(stamp: Stamp, number: int, call_id: Any, name: Any) -> dict[str, Any]:
    """A call of one of the client's tools, without its input.

    Raises:
        MalformedAnswer: the tool has no name.
    """
    if not isinstance(name, str):
        raise MalformedAnswer("sent a tool call without a name")
    named = call_id if isinstance(call_id, str) and call_id else f"toolu_{stamp.tag}_{number}"
    return {"type": "tool_use", "id": named, "name": name, "input": {}}


def arguments_of(value: Any, *, cut: bool) -> Mapping[str, Any]:
    """A call's arguments, which the API holds as an object.

    Args:
        cut: the answer ended inside them; ``stop_reason`` tells the client not to trust them.

    Raises:
        UnusableAnswer: the model wrote no JSON object.
    """
    try:
        parsed = orjson.loads(value or "{}")
    except (orjson.JSONDecodeError, TypeError):
        parsed = None
    if not isinstance(parsed, dict):
        if cut:
            return {}
        raise UnusableAnswer("The model called a tool with arguments that are no JSON object.")
    return parsed


def stop_of(choice: Mapping[str, Any], called: bool) -> dict[str, Any]:
    """``stop_reason`` and ``stop_sequence``.

    vLLM says in ``stop_reason`` which stop sequence it met; other engines do not say so.
    """
    finish, met = choice.get("finish_reason"), choice.get("stop_reason")
    if called and finish == "stop":
        finish = "tool_calls"  # a choice that was forced ends with "stop"
    if finish == "stop" and isinstance(met, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": met}
    return {"stop_reason": _STOP_REASONS.get(str(finish), "end_turn"), "stop_sequence": None}


def message_usage(value: Any) -> dict[str, int]:
    """Chat's ``usage`` in Anthropic's words: what came out of the cache is counted apart."""
    counts = usage_of(value)
    cached = counts.cached_tokens or 0
    return {
        "input_tokens": max(0, (counts.prompt_tokens or 0) - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": counts.output_tokens or 0,
    }
