"""Records that are frozen to a type checker, and cost nothing more at run time.

Python checks a frozen dataclass by setting each field through ``object.__setattr__``: 3 of 30 us
that a request costs in the control plane. Nothing writes to an event after it was made, and mypy
sees to it that nothing does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass

    def record(*, frozen: bool, slots: bool) -> Any:
        """As ``dataclasses.dataclass``; ``frozen`` gives a hash and is left to the type checker."""
        return dataclass(slots=slots, unsafe_hash=frozen)


__all__ = ["record"]
