"""A model as clients name it, as the engine names it, and where it stands among its like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sage_prefect.control_plane.events import Kind

Mode = Literal["chat", "completion", "embedding", "rerank"]
MODES: tuple[Mode, ...] = ("chat", "completion", "embedding", "rerank")

Use = Literal["text", "embedding", "rerank"]
"""What a model is for: chat models complete text too, the others do one thing."""

FIRST_ORDER = 1


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of an engine.

    Attributes:
        name: for clients; one ``*`` in it stands for any text.
        upstream: the engine's name of it, where it differs; a ``*`` in it is what the one in
            ``name`` stood for.
        order: LiteLLM's: engines of a lower order come first, those of the next when they fail.
    """

    name: str
    mode: Mode = "chat"
    upstream: str | None = None
    order: int = FIRST_ORDER

    @property
    def pool(self) -> str:
        """Name of the model in the control plane: engines of one order are one pool."""
        return self.name if self.order == FIRST_ORDER else f"{self.name} (order {self.order})"

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for many names."""
        return "*" in self.name

    @property
    def use(self) -> Use:
        """What it is for."""
        return use_of(self.mode)

    def sent_as(self, target: str, written: str) -> str | None:
        """The name that the engine must read in the body; None: it is there already.

        Args:
            target: the name that led to this model: the client's own, or what an alias or a
                fallback put in its place.
            written: the name in the body.
        """
        name = self.upstream or self.name
        if self.is_pattern and "*" in name:
            before, _, after = self.name.partition("*")
            caught = target[len(before) : len(target) - len(after)]
            name = name.replace("*", caught, 1)
        return None if name == written else name


def use_of(kind: Kind | Mode) -> Use:
    """What requests of a kind, or models of a mode, are for."""
    return kind if kind == "embedding" or kind == "rerank" else "text"
