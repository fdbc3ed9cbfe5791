"""The ``input`` of a Responses request as chat messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_gateway.dialects.base import NotTranslatable
from sage_gateway.dialects.fields import invalid, items, mapping, text

Message = dict[str, Any]

# Chat templates of open models know no developer; OpenAI's are told the two mean the same.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def messages_of(body: Mapping[str, Any]) -> list[Message]:
    """``instructions`` and ``input`` as messages.

    Raises:
        NotTranslatable: an item or a part that chat has no words for.
        HttpError: 400, a field makes no sense.
    """
    messages: list[Message] = []
    if (instructions := body.get("instructions")) is not None:
        said = text(instructions, "instructions")
        messages.append({"role": "system", "content": said})
    given = body.get("input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
        return messages
    reader = _Items(messages)
    for i, item in enumerate(items(given, "input")):
        reader.take(mapping(item, f"input[{i}]"), f"input[{i}]")
    reader.end()
    if not messages:
        raise invalid("input", "a text or a list of at least one item")
    return messages


class _Items:
    """Items in order: what the assistant did in one turn becomes one message."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages
        self._turn: Message | None = None  # an assistant's, to which calls may still be added

    def take(self, item: Mapping[str, Any], param: str) -> None:
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            self._message(item, param)
        elif kind == "function_call":
            self._call(item, param)
        elif kind == "function_call_output":
            self.end()
            self._messages.append(_output(item, param))
        elif kind == "reasoning":
            self._reasoning(item, param)
        elif kind == "item_reference":
            raise NotTranslatable(param, "it refers to a stored item, and nothing is stored here.")
        elif kind is None:
            raise invalid(f"{param}.type", "the type of an item")
        else:
            raise NotTranslatable(f"{param}.type", f"{kind!r} has no counterpart in chat.")

    def end(self) -> None:
        """The assistant's turn is over."""
        turn, self._turn = self._turn, None
        if turn is not None and ("content" in turn or "tool_calls" in turn):
            self._messages.append({"content": None, **turn})

    def _message(self, item: Mapping[str, Any], param: str) -> None:
        role = _ROLES.get(item.get("role", ""))
        if role is None:
            raise invalid(f"{param}.role", f"one of {', '.join(_ROLES)}")
        content = _content(item.get("content"), role, f"{param}.content")
        if role != "assistant":
            self.end()
            self._messages.append({"role": role, "content": content})
            return
        if self._turn is not None and ("content" in self._turn or "tool_calls" in self._turn):
            self.end()
        self._assistant()["content"] = content

    def _call(self, item: Mapping[str, Any], param: str) -> None:
        call = {
            "id": text(item.get("call_id"), f"{param}.call_id"),
            "type": "function",
            "function": {
                "name": text(item.get("name"), f"{param}.name"),
                "arguments": text(item.get("arguments"), f"{param}.arguments"),
            },
        }
        self._assistant().setdefault("tool_calls", []).append(call)

    def _reasoning(self, item: Mapping[str, Any], param: str) -> None:
        """Engines with reasoning models read it from the message that it led to."""
        parts = items(item.get("content") or [], f"{param}.content")
        said = "".join(
            text(mapping(part, f"{param}.content[{i}]").get("text"), f"{param}.content[{i}].text")
            for i, part in enumerate(parts)
        )
        if not said and item.get("encrypted_content"):
            raise NotTranslatable(
                f"{param}.encrypted_content", "only the provider that made it can read it."
            )
        if said:
            if self._turn is not None and ("content" in self._turn or "tool_calls" in self._turn):
                self.end()
            self._assistant()["reasoning_content"] = said

    def _assistant(self) -> Message:
        if self._turn is None:
            self._turn = {"role": "assistant"}
        return self._turn


def _content(value: Any, role: str, param: str) -> Any:
    if isinstance(value, str):
        return value
    parts = [
        _part(mapping(part, f"{param}[{i}]"), role, f"{param}[{i}]")
        for i, part in enumerate(items(value, param))
    ]
    if role == "assistant" or all(part["type"] == "text" for part in parts):
        # Many chat templates render plain text only.
        return "".join(part["text"] for part in parts) if len(parts) <= 1 else parts
    return parts


def _part(part: Mapping[str, Any], role: str, param: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": text(part.get("text"), f"{param}.text")}
    if kind == "refusal" and role == "assistant":
        return {"type": "text", "text": text(part.get("refusal"), f"{param}.refusal")}
    if role != "assistant":
        if kind == "input_image":
            return _image(part, param)
        if kind == "input_audio":
            return {"type": kind, kind: mapping(part.get(kind), f"{param}.{kind}")}
        if kind == "input_file":
            return _file(part, param)
    raise NotTranslatable(f"{param}.type", f"{kind!r} has no counterpart in chat.")


def _image(part: Mapping[str, Any], param: str) -> dict[str, Any]:
    if part.get("file_id") is not None:
        raise NotTranslatable(f"{param}.file_id", "no files are stored here; send the image.")
    image: dict[str, Any] = {"url": text(part.get("image_url"), f"{param}.image_url")}
    if (detail := part.get("detail")) is not None:
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}


def _file(part: Mapping[str, Any], param: str) -> dict[str, Any]:
    for field in ("file_id", "file_url"):
        if part.get(field) is not None:
            raise NotTranslatable(f"{param}.{field}", "chat takes a file's content (file_data).")
    names = ("file_data", "filename")
    return {"type": "file", "file": {key: part[key] for key in names if part.get(key) is not None}}


def _output(item: Mapping[str, Any], param: str) -> Message:
    value = item.get("output")
    if not isinstance(value, str):
        value = _content(value, "tool", f"{param}.output")
    called = text(item.get("call_id"), f"{param}.call_id")
    return {"role": "tool", "tool_call_id": called, "content": value}
