"""What embedding engines may take of accelerators that they share with LLM engines."""

from __future__ import annotations

import math


class SharedSites:
    """Answers for engines by name. This one: none of them shares an accelerator."""

    def is_crowded(self, engine: str) -> bool:
        """Whether another call there would break what an LLM engine beside it has promised."""
        return False

    def opens_at(self, engine: str) -> float:
        """From when on its accelerator takes a call that may wait, seconds; infinity: it is left to
        LLM requests."""
        return -math.inf

    def part(self, engine: str) -> float:
        """Of its accelerator's time, how much calls get there, 0 to 1."""
        return 1.0
