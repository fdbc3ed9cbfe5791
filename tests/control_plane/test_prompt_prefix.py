from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.prompt_prefix import (
    MAX_PREFIX_BLOCKS,
    PREFIX_BLOCK_BYTES,
    prefix_hashes,
    prompt_beginning,
)

LONG = "You are a careful assistant. " * 40
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
TEXT = st.text(max_size=600)
PART = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}) | st.fixed_dictionaries(
    {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": TEXT})}
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": st.none() | TEXT | st.lists(PART, max_size=3),
    },
    optional={"name": st.text(max_size=9), "tool_calls": st.lists(JSON, max_size=2)},
)


def shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Length of the common beginning; nothing may be equal after the first difference."""
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    assert not set(one[n:]) & set(other[n:])
    return n


def chat(*contents: Any, **fields: Any) -> dict[str, Any]:
    roles = ("system", "user", "assistant")
    return {
        "messages": [{"role": roles[i % 3], "content": c} for i, c in enumerate(contents)],
        **fields,
    }


def test_what_follows_does_not_matter() -> None:
    first = prefix_hashes("m", chat(LONG, "What is a hash?"))
    second = prefix_hashes("m", chat(LONG, "And a chain?" * 90, "A " * 900, max_tokens=3))
    whole = len(LONG) // PREFIX_BLOCK_BYTES
    assert shared(first, second) >= whole > 3


def test_a_beginning_within_one_message_is_shared_too() -> None:
    first = prefix_hashes("m", chat(LONG + "Document A" * 100))
    second = prefix_hashes("m", chat(LONG + "Document B" * 100))
    assert shared(first, second) == len(LONG) // PREFIX_BLOCK_BYTES


@given(st.lists(MESSAGE, min_size=1, max_size=6), st.lists(MESSAGE, max_size=3), st.data())
def test_equal_messages_give_equal_hashes(
    messages: list[Any], more: list[Any], data: st.DataObject
) -> None:
    short = prefix_hashes("m", {"messages": messages})
    longer = prefix_hashes("m", {"messages": messages + more, "temperature": 1})
    assert longer[: len(short)] == short
    assert len(short) == min(
        MAX_PREFIX_BLOCKS, len(prompt_beginning({"messages": messages})) // PREFIX_BLOCK_BYTES
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat(LONG), chat("X" + LONG)),
        (chat(LONG), chat(LONG, tools=[{"type": "function", "function": {"name": "f"}}])),
        (chat(LONG), chat(LONG, cache_salt="a")),
        (chat(LONG, cache_salt="a"), chat(LONG, cache_salt="b")),
        (chat([{"type": "image_url", "image_url": {"url": "data:a" + "x" * 999}}], LONG),
         chat([{"type": "image_url", "image_url": {"url": "data:b" + "x" * 999}}], LONG)),
        ({"prompt": LONG}, {"prompt": LONG[1:]}),
        ({"prompt": list(range(500))}, {"prompt": list(range(1, 501))}),
        ({"messages": [{"role": "user", "content": LONG}]},
         {"messages": [{"role": "system", "content": LONG}]}),
    ],
)  # fmt: skip
def test_what_begins_otherwise_shares_nothing(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = prefix_hashes("m", one), prefix_hashes("m", other)
    assert first
    assert second
    assert shared(first, second) == 0


def test_models_do_not_share() -> None:
    assert shared(prefix_hashes("m", chat(LONG)), prefix_hashes("n", chat(LONG))) == 0


def test_blocks_of_token_ids_are_exact() -> None:
    ids = list(range(1000, 1200))
    hashes = prefix_hashes("m", {"prompt": ids})
    assert len(hashes) == 200 // 64
    other = [*ids[:128], 7, *ids[129:]]
    assert shared(hashes, prefix_hashes("m", {"prompt": other})) == 2
    assert prefix_hashes("m", {"prompt": [ids, [1]]}) == hashes


def test_long_and_short_prompts() -> None:
    assert prefix_hashes("m", chat("x" * 200)) == ()
    assert len(prefix_hashes("m", {"prompt": "ü" * 10**6})) == MAX_PREFIX_BLOCKS
    assert len(prefix_hashes("m", chat("x" * 10**6, "y"))) == MAX_PREFIX_BLOCKS
    assert len(prefix_hashes("m", {"prompt": [5] * 10**6})) == MAX_PREFIX_BLOCKS


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("messages", "prompt", "tools"), JSON)))
def test_any_json_is_taken(body: dict[str, Any]) -> None:
    assert all(0 <= h < 1 << 64 for h in prefix_hashes("m", body))


def test_an_unknown_shape_ends_the_prefix_before_it() -> None:
    known = chat(LONG)
    before = prefix_hashes("m", known)
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for odd in (3, {"role": "user", "content": 7}, {"role": 1, "content": "x" * 999}):
        assert prefix_hashes("m", {"messages": [*known["messages"], odd]}) == before
    tools = {"role": "user", "content": "", "tool_calls": deep}
    assert prefix_hashes("m", {"messages": [*known["messages"], tools]})[: len(before)] == before
    assert prefix_hashes("m", {**known, "tools": deep}) == ()
    assert prefix_hashes("m", {"prompt": [-1] * 500}) == ()
    assert len(prefix_hashes("m", {"prompt": "\ud800" * 500})) == 1500 // PREFIX_BLOCK_BYTES


def test_every_process_finds_the_same_hashes() -> None:
    code = (
        "from sage_prefect.control_plane.prompt_prefix import prefix_hashes;"
        "print(prefix_hashes('m', {'prompt': 'abc' * 300}))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == str(prefix_hashes("m", {"prompt": "abc" * 300}))
