"""Responses requests as chat requests."""

from __future__ import annotations

from typing import Any

import pytest

from sage_gateway.dialects.base import NotTranslatable
from sage_gateway.dialects.responses_request import chat_request
from sage_gateway.errors import HttpError


def ask(given: Any = "hello", **fields: Any) -> dict[str, Any]:
    return chat_request({"model": "m", "input": given, **fields})


def test_a_text_becomes_a_user_message_after_the_instructions() -> None:
    assert ask(instructions="Be brief.") == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
        ],
    }


def test_settings_have_their_chat_names_and_unknown_fields_pass() -> None:
    chat = ask(
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        parallel_tool_calls=False,
        user="u",
        stream=True,
        store=False,
        metadata={"a": "b"},
        text={"verbosity": "low", "format": {"type": "text"}},
        reasoning={"effort": "low", "summary": "auto"},
        include=["message.output_text.logprobs"],
        top_logprobs=3,
        chat_template_kwargs={"enable_thinking": False},
        min_p=0.1,
    )
    chat.pop("messages")
    assert chat == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "parallel_tool_calls": False,
        "user": "u",
        "stream": True,
        "stream_options": {"include_usage": True},
        "verbosity": "low",
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 3,
        "chat_template_kwargs": {"enable_thinking": False},
        "min_p": 0.1,
    }


def test_a_schema_moves_into_response_format() -> None:
    schema = {"type": "object"}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    assert ask(text={"format": form})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": True},
    }
    assert ask(text={"format": {"type": "json_object"}})["response_format"] == {
        "type": "json_object"
    }


def test_functions_and_the_choice_among_them() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    chat = ask(tools=[tool], tool_choice={"type": "function", "name": "f"})
    assert chat["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
        }
    ]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert ask(tools=[tool], tool_choice="required")["tool_choice"] == "required"


def test_a_conversation_with_calls_reasoning_and_pictures() -> None:
    chat = ask(
        [
            {"role": "developer", "content": "Be brief."},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Where is this?"},
                    {
                        "type": "input_image",
                        "image_url": "data:image/png;base64,AA",
                        "detail": "low",
                    },
                ],
            },
            {
                "type": "reasoning",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Hm."}],
            },
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "2"}],
            },
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Paris."}],
            },
            {"role": "user", "content": "Sure?"},
        ]
    )
    calls = [
        {"id": i, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for i, name in (("c1", "f"), ("c2", "g"))
    ]
    assert chat["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Where is this?"},
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64,AA", "detail": "low"},
                },
            ],
        },
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "Sure?"},
    ]


def test_two_answers_in_a_row_stay_two() -> None:
    said = [{"role": "assistant", "content": text} for text in "ab"]
    assert ask([*said, {"role": "user", "content": "c"}])["messages"][:2] == said


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"store": True}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        (
            {"input": [{"type": "reasoning", "encrypted_content": "x"}]},
            "input[0].encrypted_content",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]},
            "input[0].content[0].file_url",
        ),
    ],
)
def test_what_chat_cannot_say_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(NotTranslatable) as caught:
        ask(**{"given": fields.pop("input", "x")}, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"given": []}, "input"),
        ({"given": ["x"]}, "input[0]"),
        ({"given": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"given": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"given": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"given": [{"id": "x"}]}, "input[0].type"),
        ({"text": "json"}, "text"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"top_logprobs": "3"}, "top_logprobs"),
        ({"instructions": ["x"]}, "instructions"),
    ],
)
def test_nonsense_is_400_and_named(fields: dict[str, Any], param: str) -> None:
    if param == "tools":
        fields = {"tools": {"type": "function"}}
    with pytest.raises(HttpError) as caught:
        ask(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
