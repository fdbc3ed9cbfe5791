"""Lists of models for clients of both APIs."""

from __future__ import annotations

from typing import Any

from sage_gateway.dialects.model_list import model_list


def test_both_shapes() -> None:
    assert model_list(["a", "b"], anthropic=False) == {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 0, "owned_by": "sage"} for name in "ab"
        ],
    }
    listed: Any = model_list(["a", "b"], anthropic=True)
    assert [(entry["type"], entry["id"]) for entry in listed["data"]] == [
        ("model", "a"),
        ("model", "b"),
    ]
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "a", "b")
    assert model_list([], anthropic=True)["first_id"] is None
