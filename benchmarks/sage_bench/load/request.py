"""A request of a load: ready to send, with what its record should say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["chat", "completion", "embedding"]

PATHS: dict[Kind, str] = {
    "chat": "/chat/completions",
    "completion": "/completions",
    "embedding": "/embeddings",
}


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request. The body is final: building it costs nothing at sending time."""

    kind: Kind
    body: bytes
    """The JSON object as sent."""
    stream: bool = False
    """The body asks for a stream."""
    tenant: str = ""
    """For the record; :attr:`headers` carry whatever the server needs to know of it."""
    band: str = ""
    prompt_tokens: int = 0
    """As planned; the record also has what the server reports."""
    output_tokens: int = 0
    inputs: int = 0
    """Texts of an embedding request: so many vectors must come back. 0: not checked."""
    headers: tuple[tuple[str, str], ...] = ()
    abandon_after: int | None = None
    """The client leaves after so many events that carry text (streams only)."""
