"""A chat answer as a Responses object, whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from sage_gateway.dialects.base import MalformedAnswer, Stamp
from sage_gateway.dialects.chat_events import choice_of, texts_of, tool_calls_of
from sage_gateway.usage import usage_of

_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": "default",
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "user": None,
}


def skeleton(body: Mapping[str, Any], stamp: Stamp) -> dict[str, Any]:
    """A response that has said nothing yet, with the request's settings in it."""
    wanted = body.get("text") or {}
    reasoning = body.get("reasoning") or {}
    echoed = {
        key: default if body.get(key) is None else body[key] for key, default in _ECHOED.items()
    }
    return {
        "id": f"resp_{stamp.tag}",
        "object": "response",
        "created_at": stamp.created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": body["model"],
        "output": [],
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "store": False,
        "text": {**wanted, "format": wanted.get("format") or {"type": "text"}},
        "truncation": "disabled",
        "usage": None,
        **echoed,
    }


def whole_response(answer: bytes, body: Mapping[str, Any], stamp: Stamp) -> bytes:
    """The response of a whole chat answer.

    Raises:
        MalformedAnswer: it is no chat answer.
    """
    try:
        content = orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise MalformedAnswer("sent an answer that is not JSON") from None
    choice = choice_of(content) if isinstance(content, dict) else None
    if choice is None or not isinstance(choice.get("message"), Mapping):
        raise MalformedAnswer("sent an answer without a message")
    message = choice["message"]
    response = skeleton(body, stamp)
    reasoning, said, refusal = texts_of(message)
    output: list[dict[str, Any]] = response["output"]
    if reasoning:
        output.append(reasoning_item(stamp, len(output), reasoning))
    calls = tool_calls_of(message)
    if said or refusal or not calls:
        logprobs = (choice.get("logprobs") or {}).get("content")
        parts = [text_part(said, logprobs)] if said or not refusal else []
        if refusal:
            parts.append(refusal_part(refusal))
        output.append(message_item(stamp, len(output), parts))
    for call in calls:
        output.append(call_item(stamp, len(output), call.get("id"), call["function"]))
    settle(response, choice.get("finish_reason"), content.get("usage"))
    return orjson.dumps(response)


def settle(response: dict[str, Any], finish_reason: Any, usage: Any) -> None:
    """The answer is over: set how it ended, and its token counts."""
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(
        str(finish_reason)
    )
    response["status"] = "incomplete" if reason else "completed"
    if reason:
        response["incomplete_details"] = {"reason": reason}
        if response["output"]:
            response["output"][-1]["status"] = "incomplete"
    response["usage"] = response_usage(usage)


def response_usage(value: Any) -> dict[str, Any] | None:
    """Chat's ``usage`` in the words of the Responses API; None: the engine did not count."""
    counts = usage_of(value)
    if counts.prompt_tokens is None and counts.output_tokens is None:
        return None
    given, made = counts.prompt_tokens or 0, counts.output_tokens or 0
    details = value.get("completion_tokens_details")
    thought = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
    return {
        "input_tokens": given,
        "input_tokens_details": {
            "cached_tokens": counts.cached_tokens or 0,
            "cache_write_tokens": 0,  # engines do not bill what they keep
        },
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": thought or 0},
        "total_tokens": given + made,
    }


def text_part(said: str, logprobs: Any = None) -> dict[str, Any]:
    """A part of text."""
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": logprobs or []}


def refusal_part(said: str) -> dict[str, Any]:
    """A part in which the model declines."""
    return {"type": "refusal", "refusal": said}


def message_item(
    stamp: Stamp, index: int, parts: list[dict[str, Any]], status: str = "completed"
) -> dict[str, Any]:
    """A message of the assistant."""
    return {
        "id": f"msg_{stamp.tag}_{index}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": parts,
    }


def reasoning_item(stamp: Stamp, index: int, said: str) -> dict[str, Any]:
    """What the model thought, in its own words."""
    return {
        "id": f"rs_{stamp.tag}_{index}",
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": said}],
    }


def call_item(
    stamp: Stamp, index: int, call_id: Any, function: Mapping[str, Any]
) -> dict[str, Any]:
    """A call of one of the client's functions.

    Raises:
        MalformedAnswer: the function has no name.
    """
    name = function.get("name")
    if not isinstance(name, str):
        raise MalformedAnswer("sent a tool call without a name")
    return {
        "id": f"fc_{stamp.tag}_{index}",
        "type": "function_call",
        "status": "completed",
        "call_id": call_id if isinstance(call_id, str) else f"call_{stamp.tag}_{index}",
        "name": name,
        "arguments": function.get("arguments") or "",
    }
