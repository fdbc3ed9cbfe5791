"""``system`` and ``messages`` of an Anthropic request as chat messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from sage_gateway.dialects.base import NotTranslatable
from sage_gateway.dialects.fields import invalid, items, mapping, text

Message = dict[str, Any]


def messages_of(body: Mapping[str, Any]) -> list[Message]:
    """All messages of the conversation.

    Raises:
        NotTranslatable: a block that chat has no words for, or a beginning of the answer
            (the last message is the assistant's), which engines go on from in unlike ways.
        HttpError: 400, a field makes no sense.
    """
    messages: list[Message] = []
    if (system := body.get("system")) is not None:
        messages.append({"role": "system", "content": _plain(system, "system")})
    role = None
    given = items(body.get("messages"), "messages")
    for i, value in enumerate(given):
        param = f"messages[{i}]"
        message = mapping(value, param)
        role = message.get("role")
        content = message.get("content")
        if role == "user":
            messages += _user(content, f"{param}.content")
        elif role == "assistant":
            messages.append(_assistant(content, f"{param}.content"))
        elif role == "system":
            messages.append({"role": role, "content": _plain(content, f"{param}.content")})
        else:
            raise invalid(f"{param}.role", "user or assistant")
    if role == "assistant":
        raise NotTranslatable(
            f"messages[{len(given) - 1}].role",
            "an answer that continues the assistant's last message cannot be asked by chat.",
        )
    return messages


def _plain(value: Any, param: str) -> str:
    """A text, or the texts of its blocks."""
    if isinstance(value, str):
        return value
    said = []
    for i, item in enumerate(items(value, param)):
        block = mapping(item, f"{param}[{i}]")
        if block.get("type") != "text":
            raise invalid(f"{param}[{i}].type", "text")
        said.append(text(block.get("text"), f"{param}[{i}].text"))
    return "\n".join(said)


def _user(content: Any, param: str) -> list[Message]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Message] = []
    parts: list[dict[str, Any]] = []
    for i, item in enumerate(items(content, param)):
        where = f"{param}[{i}]"
        block = mapping(item, where)
        if block.get("type") != "tool_result":
            parts.append(_part(block, where))
            continue
        called = text(block.get("tool_use_id"), f"{where}.tool_use_id")
        results.append(
            {
                "role": "tool",
                "tool_call_id": called,
                "content": _result(block.get("content"), f"{where}.content"),
            }
        )
    if parts:
        results.append({"role": "user", "content": _simplest(parts)})
    if not results:
        raise invalid(param, "a text or a list of at least one block")
    return results


def _result(content: Any, param: str) -> Any:
    if content is None or isinstance(content, str):
        return content or ""
    blocks = items(content, param)
    return _simplest(
        [_part(mapping(b, f"{param}[{i}]"), f"{param}[{i}]") for i, b in enumerate(blocks)]
    )


def _simplest(parts: list[dict[str, Any]]) -> Any:
    """One text as such: many chat templates render plain text only."""
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(block: Mapping[str, Any], param: str) -> dict[str, Any]:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": text(block.get("text"), f"{param}.text")}
    if kind == "image":
        source = mapping(block.get("source"), f"{param}.source")
        return {"type": "image_url", "image_url": {"url": _url(source, f"{param}.source")}}
    raise NotTranslatable(f"{param}.type", f"{kind!r} has no counterpart in chat.")


def _url(source: Mapping[str, Any], param: str) -> str:
    kind = source.get("type")
    if kind == "url":
        return text(source.get("url"), f"{param}.url")
    if kind == "base64":
        media = text(source.get("media_type"), f"{param}.media_type")
        return f"data:{media};base64,{text(source.get('data'), f'{param}.data')}"
    raise NotTranslatable(f"{param}.type", f"{kind!r}: no files are stored here; send the image.")


def _assistant(content: Any, param: str) -> Message:
    message: Message = {"role": "assistant", "content": None}
    if isinstance(content, str):
        message["content"] = content
        return message
    said: list[str] = []
    thought: list[str] = []
    calls: list[dict[str, Any]] = []
    for i, item in enumerate(items(content, param)):
        where = f"{param}[{i}]"
        block = mapping(item, where)
        kind = block.get("type")
        if kind == "text":
            said.append(text(block.get("text"), f"{where}.text"))
        elif kind == "thinking":
            thought.append(text(block.get("thinking"), f"{where}.thinking"))
        elif kind == "tool_use":
            calls.append(_call(block, where))
        elif kind != "redacted_thinking":  # the API, too, leaves out what was thought before
            raise NotTranslatable(f"{where}.type", f"{kind!r} has no counterpart in chat.")
    if said:
        message["content"] = "".join(said)
    if thought:
        message["reasoning_content"] = "".join(thought)
    if calls:
        message["tool_calls"] = calls
    elif not said:
        message["content"] = ""
    return message


def _call(block: Mapping[str, Any], param: str) -> dict[str, Any]:
    given = mapping(block.get("input"), f"{param}.input")
    return {
        "id": text(block.get("id"), f"{param}.id"),
        "type": "function",
        "function": {
            "name": text(block.get("name"), f"{param}.name"),
            "arguments": orjson.dumps(given).decode(),
        },
    }
