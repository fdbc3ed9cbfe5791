"""What the request classifier reads, out of bodies of other APIs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_URGENCY = ("model", "priority", "service_tier", "cache_salt")


def urgency(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that mean the same in every API."""
    return {name: body[name] for name in _URGENCY if name in body}


def short_work(body: Mapping[str, Any], **read: Any) -> dict[str, Any]:
    """A call that makes no tokens: its prompt is read once and nothing is written."""
    return {**urgency(body), **read, "max_tokens": 1}
