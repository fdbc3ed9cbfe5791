"""Messages requests as chat requests."""

from __future__ import annotations

from typing import Any

import pytest

from sage_gateway.dialects.base import NotTranslatable
from sage_gateway.dialects.messages_request import chat_request, check
from sage_gateway.errors import HttpError

USER = {"role": "user", "content": "hello"}


def ask(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    given = list(messages) or [USER]
    return chat_request({"model": "m", "max_tokens": 9, "messages": given, **fields})


def test_system_and_settings() -> None:
    assert ask(
        system=[{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}],
        stop_sequences=["x"],
        temperature=0.5,
        top_k=5,
        stream=True,
        metadata={"user_id": "u"},
        service_tier="standard_only",
        thinking={"type": "adaptive"},
        cache_control={"type": "ephemeral"},
        min_p=0.1,
    ) == {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "system", "content": "Be\nbrief."}, USER],
        "stop": ["x"],
        "temperature": 0.5,
        "top_k": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "u",
        "service_tier": "default",
        "min_p": 0.1,
    }


def test_tools_and_the_choice_among_them() -> None:
    tool = {
        "name": "f",
        "description": "d",
        "input_schema": {"type": "object"},
        "cache_control": {"type": "ephemeral"},
    }
    chat = ask(tools=[tool], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert chat["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
        }
    ]
    assert (chat["tool_choice"], chat["parallel_tool_calls"]) == ("required", False)
    named = ask(tools=[tool], tool_choice={"type": "tool", "name": "f"})
    assert named["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert ask(tools=[tool], tool_choice={"type": "none"})["tool_choice"] == "none"


@pytest.mark.parametrize("where", ["output_config", "output_format"])
def test_a_schema_for_the_answer(where: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    chat = ask(**{where: {"format": form, "effort": "low"} if where == "output_config" else form})
    assert chat["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert chat.get("reasoning_effort") == ("low" if where == "output_config" else None)


def test_a_conversation_with_tools_thoughts_and_pictures() -> None:
    picture = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "AA"},
    }
    chat = ask(
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, picture]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "redacted_thinking", "data": "zz"},
                {"type": "text", "text": "I ask."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "1"}],
                },
                {"type": "text", "text": "And now?"},
            ],
        },
    )
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert chat["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
            ],
        },
        {
            "role": "assistant",
            "content": "I ask.",
            "reasoning_content": "Hm.",
            "tool_calls": [call],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "1"},
        {"role": "user", "content": "And now?"},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"context_management": {"edits": []}}, "context_management"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
        ({"output_format": {"type": "grammar"}}, "output_format.type"),
        ({"messages": [USER, {"role": "assistant", "content": "Th"}]}, "messages[1].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}],
                    }
                ]
            },
            "messages[0].content[0].source.type",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}, USER]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_what_chat_cannot_say_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(NotTranslatable) as caught:
        ask(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"system": 3}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "must"}}, "tool_choice.type"),
        ({"metadata": {"user_id": 3}}, "metadata.user_id"),
        ({"stop_sequences": "x"}, "stop_sequences"),
    ],
)
def test_nonsense_is_400_and_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(HttpError) as caught:
        ask(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("limit", [None, 0, True, "9", 1.5])
def test_max_tokens_must_be_given(limit: Any) -> None:
    with pytest.raises(HttpError, match="max_tokens"):
        check({"max_tokens": limit})
    check({"max_tokens": 1})
