"""``GET /v1/models`` in the shape of the API whose client asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Engines do not say when their models were made; both APIs ask for a time.
_UNKNOWN_TIME = "1970-01-01T00:00:00Z"


def asks_anthropic(headers: Mapping[bytes, bytes]) -> bool:
    """Whether an Anthropic client asks: all of them send this header."""
    return b"anthropic-version" in headers


def model_entry(name: str, *, anthropic: bool) -> dict[str, object]:
    """One model."""
    if anthropic:
        return {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": _UNKNOWN_TIME,
        }
    return {"id": name, "object": "model", "created": 0, "owned_by": "sage"}


def model_list(names: Sequence[str], *, anthropic: bool) -> dict[str, object]:
    """All of them, in one page."""
    data = [model_entry(name, anthropic=anthropic) for name in names]
    if not anthropic:
        return {"object": "list", "data": data}
    ends = (names[0], names[-1]) if names else (None, None)
    return {"data": data, "has_more": False, "first_id": ends[0], "last_id": ends[1]}
