"""Anthropic's Messages API as a chat completion: the request.

After Anthropic's API reference (Messages). What chat cannot express without loss is refused by
name; fields that the API does not know (an engine's own) are passed on as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_gateway.dialects.base import NotTranslatable
from sage_gateway.dialects.fields import invalid, items, mapping, positive, text
from sage_gateway.dialects.messages_input import messages_of

_REFUSED = {
    "container": "code runs in no container here.",
    "mcp_servers": "the client calls its tools itself.",
    "context_management": "the context is not edited here.",
    "inference_geo": "where an engine runs is not known here.",
    "speed": "every engine has one speed.",
}
_TRANSLATED = frozenset(
    {"messages", "system", "stop_sequences", "tools", "tool_choice", "metadata", "thinking"}
    | {"output_config", "output_format", "service_tier"}
)
# Hints for the provider's own prompt cache; engines cache prefixes by themselves.
_WITHOUT_EFFECT = frozenset({"cache_control", "stream_options"})
_DROPPED = _TRANSLATED | _WITHOUT_EFFECT | frozenset(_REFUSED)


def check(body: Mapping[str, Any]) -> None:
    """What the API itself asks for.

    Raises:
        HttpError: 400, ``max_tokens`` is missing or no whole number above 0.
    """
    positive(body.get("max_tokens"), "max_tokens")


def chat_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request that asks for the same.

    Raises:
        NotTranslatable: names a field that chat has no words for.
        HttpError: 400, a field makes no sense.
    """
    for field, why in _REFUSED.items():
        if body.get(field):
            raise NotTranslatable(field, why)
    chat = {key: value for key, value in body.items() if key not in _DROPPED and value is not None}
    chat["messages"] = messages_of(body)
    if (stops := body.get("stop_sequences")) is not None:
        chat["stop"] = items(stops, "stop_sequences")
    if (metadata := body.get("metadata")) is not None:
        user = mapping(metadata, "metadata").get("user_id")
        if user is not None:
            chat["user"] = text(user, "metadata.user_id")
    if (tier := body.get("service_tier")) is not None:
        chat["service_tier"] = "default" if tier == "standard_only" else tier
    _check_thinking(body.get("thinking"))
    _put_output(chat, body)
    _put_tools(chat, body)
    if body.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    return chat


def _check_thinking(value: Any) -> None:
    if value is None:
        return
    kind = mapping(value, "thinking").get("type")
    if kind not in ("disabled", "adaptive"):
        # An engine's model thinks or not by its template; no budget can be set by chat's fields.
        raise NotTranslatable("thinking.type", f"{kind!r} with a budget of tokens cannot be asked.")


def _put_output(chat: dict[str, Any], body: Mapping[str, Any]) -> None:
    config = mapping(body.get("output_config") or {}, "output_config")
    if (effort := config.get("effort")) is not None:
        chat["reasoning_effort"] = effort
    param, form = "output_config.format", config.get("format")
    if form is None:
        param, form = "output_format", body.get("output_format")
    if form is None:
        return
    form = mapping(form, param)
    if form.get("type") != "json_schema":
        raise NotTranslatable(f"{param}.type", f"{form.get('type')!r} has no counterpart in chat.")
    schema = mapping(form.get("schema"), f"{param}.schema")
    chat["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "output", "schema": schema, "strict": True},
    }


def _put_tools(chat: dict[str, Any], body: Mapping[str, Any]) -> None:
    tools = items(body.get("tools") or [], "tools")
    if tools:
        chat["tools"] = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    if (value := body.get("tool_choice")) is None:
        return
    choice = mapping(value, "tool_choice")
    kind = choice.get("type")
    if kind == "tool":
        name = text(choice.get("name"), "tool_choice.name")
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind in ("auto", "any", "none"):
        chat["tool_choice"] = "required" if kind == "any" else kind
    else:
        raise invalid("tool_choice.type", "one of auto, any, tool, none")
    if choice.get("disable_parallel_tool_use") is True:
        chat["parallel_tool_calls"] = False


def _tool(value: Any, param: str) -> dict[str, Any]:
    tool = mapping(value, param)
    if (kind := tool.get("type")) not in (None, "custom"):
        raise NotTranslatable(
            f"{param}.type", f"{kind!r} belongs to the provider; tools of the client can be had."
        )
    function: dict[str, Any] = {"name": text(tool.get("name"), f"{param}.name")}
    if (description := tool.get("description")) is not None:
        function["description"] = text(description, f"{param}.description")
    function["parameters"] = mapping(tool.get("input_schema"), f"{param}.input_schema")
    if (strict := tool.get("strict")) is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}
