"""OpenAI's Responses API as a chat completion: the request.

After OpenAI's API reference (Responses, Chat Completions). What chat cannot express without loss
is refused by name; fields that neither API knows (an engine's own) are passed on as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_gateway.dialects.base import NotTranslatable
from sage_gateway.dialects.fields import invalid, items, mapping, text
from sage_gateway.dialects.responses_input import messages_of

_STORED = "it continues or keeps a stored response, and this gateway stores none."
_REFUSED = {
    "previous_response_id": _STORED,
    "conversation": _STORED,
    "background": "the answer is made while the client waits.",
    "prompt": "prompt templates live at OpenAI.",
    "context_management": "the context is not compacted here.",
}
# Of no effect on what a chat completion says; echoed where the response has them.
_WITHOUT_EFFECT = frozenset(
    {"store", "include", "truncation", "max_tool_calls", "metadata", "stream_options"}
)
_TRANSLATED = frozenset(
    {"input", "instructions", "max_output_tokens", "text", "reasoning", "tools", "tool_choice"}
    | {"top_logprobs"}
)
_DROPPED = _WITHOUT_EFFECT | _TRANSLATED | frozenset(_REFUSED)


def chat_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request that asks for the same.

    Raises:
        NotTranslatable: names a field that chat has no words for.
        HttpError: 400, a field makes no sense.
    """
    _refuse(body)
    chat = {key: value for key, value in body.items() if key not in _DROPPED and value is not None}
    chat["messages"] = messages_of(body)
    if (limit := body.get("max_output_tokens")) is not None:
        chat["max_tokens"] = limit
    _put_format(chat, body.get("text"))
    _put_reasoning(chat, body.get("reasoning"))
    _put_tools(chat, body)
    _put_logprobs(chat, body)
    if body.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    return chat


def _refuse(body: Mapping[str, Any]) -> None:
    for field, why in _REFUSED.items():
        if body.get(field):
            raise NotTranslatable(field, why)
    if body.get("store") is True:
        raise NotTranslatable("store", _STORED)
    if body.get("truncation") not in (None, "disabled"):
        raise NotTranslatable("truncation", "no input is cut; only 'disabled' can be had.")
    for i, wanted in enumerate(items(body.get("include") or [], "include")):
        if wanted not in ("message.output_text.logprobs", "reasoning.encrypted_content"):
            raise NotTranslatable(f"include[{i}]", f"{wanted!r} is no part of a chat answer.")


def _put_format(chat: dict[str, Any], value: Any) -> None:
    if value is None:
        return
    wanted = mapping(value, "text")
    if (verbosity := wanted.get("verbosity")) is not None:
        chat["verbosity"] = verbosity
    if (form := wanted.get("format")) is None:
        return
    form = mapping(form, "text.format")
    kind = form.get("type")
    if kind == "json_schema":
        rest = {key: part for key, part in form.items() if key != "type" and part is not None}
        chat["response_format"] = {"type": kind, "json_schema": rest}
    elif kind == "json_object":
        chat["response_format"] = {"type": kind}
    elif kind != "text":
        raise NotTranslatable("text.format.type", f"{kind!r} has no counterpart in chat.")


def _put_reasoning(chat: dict[str, Any], value: Any) -> None:
    if value is None:
        return
    wanted = mapping(value, "reasoning")
    if (effort := wanted.get("effort")) is not None:
        chat["reasoning_effort"] = effort
    for field in ("summary", "generate_summary"):
        if wanted.get(field) not in (None, "auto"):
            raise NotTranslatable(
                f"reasoning.{field}", "a chat answer holds no summary of its reasoning."
            )


def _put_tools(chat: dict[str, Any], body: Mapping[str, Any]) -> None:
    tools = items(body.get("tools") or [], "tools")
    if tools:
        chat["tools"] = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    choice = body.get("tool_choice")
    if choice is None:
        return
    if isinstance(choice, str):
        chat["tool_choice"] = choice
        return
    choice = mapping(choice, "tool_choice")
    if choice.get("type") != "function":
        raise NotTranslatable("tool_choice.type", f"{choice.get('type')!r} is no function.")
    name = text(choice.get("name"), "tool_choice.name")
    chat["tool_choice"] = {"type": "function", "function": {"name": name}}


def _tool(value: Any, param: str) -> dict[str, Any]:
    tool = mapping(value, param)
    kind = tool.get("type")
    if kind != "function":
        raise NotTranslatable(
            f"{param}.type", f"{kind!r} runs at the provider; functions of the client can be had."
        )
    text(tool.get("name"), f"{param}.name")
    function = {key: part for key, part in tool.items() if key != "type" and part is not None}
    return {"type": "function", "function": function}


def _put_logprobs(chat: dict[str, Any], body: Mapping[str, Any]) -> None:
    top = body.get("top_logprobs")
    if top is not None and (isinstance(top, bool) or not isinstance(top, int)):
        raise invalid("top_logprobs", "a whole number", top)
    if top or "message.output_text.logprobs" in (body.get("include") or ()):
        chat["logprobs"] = True
        chat["top_logprobs"] = top or 0
