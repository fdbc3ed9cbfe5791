"""What a step wishes from the worker that runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sage_prefect.common.errors import GraphError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 1 << (10 * power) for power, unit in enumerate("kmgt", start=1)}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Resources:
    """Counted wishes and required labels; they become the worker resources of a scheduler.

    Counters bound how many tasks run at once on a worker; they isolate nothing.

    Args:
        cpu: CPU slots (``0`` = no wish: may run anywhere).
        gpu: GPU slots, fractions allowed.
        memory: bytes, or a text such as ``"2GiB"``.
        labels: labels that the worker must carry, such as ``("fast-disk",)``.

    Raises:
        GraphError: a negative number or an unreadable memory size.
    """

    cpu: float = 0
    gpu: float = 0
    memory: int | str | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("cpu", "gpu"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
                raise GraphError(
                    f"Resources({name}={value!r}) is not a number of slots.", hint="Use 0 or more."
                )
        object.__setattr__(self, "labels", tuple(sorted(set(self.labels))))
        if self.memory is not None:
            object.__setattr__(self, "memory", parse_size(self.memory))

    def __bool__(self) -> bool:
        return bool(self.cpu or self.gpu or self.memory or self.labels)

    def counters(self) -> dict[str, float]:
        """Abstract counters as Dask workers carry them: ``{"CPU": 1, "GPU": 1, "label:x": 1}``.

        A label is a counter that workers offer plentifully and a task takes one unit of.
        """
        counted: dict[str, float] = {}
        if self.cpu:
            counted["CPU"] = float(self.cpu)
        if self.gpu:
            counted["GPU"] = float(self.gpu)
        if self.memory:
            counted["MEMORY"] = float(self.memory)
        counted |= {f"label:{label}": 1.0 for label in self.labels}
        return counted

    def fits(self, offer: Mapping[str, float]) -> bool:
        """Whether a worker that offers these counters could ever run this."""
        return all(offer.get(name, 0.0) >= amount for name, amount in self.counters().items())

    def union(self, other: Resources) -> Resources:
        """The wish of two operators fused into one task: the larger of each."""
        sizes = [int(r.memory) for r in (self, other) if r.memory is not None]
        return Resources(
            cpu=max(self.cpu, other.cpu),
            gpu=max(self.gpu, other.gpu),
            memory=max(sizes) if sizes else None,
            labels=(*self.labels, *other.labels),
        )

    def __str__(self) -> str:
        parts = [f"{name.lower()}={amount:g}" for name, amount in self.counters().items()]
        return ", ".join(parts) or "anywhere"


def parse_size(value: int | str) -> int:
    """Bytes of ``2_000_000``, ``"512MB"`` or ``"2GiB"``.

    Raises:
        GraphError: the text is no size.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    if not match:
        raise GraphError(f"{value!r} is not a size.", hint='Use bytes or a text such as "2GiB".')
    return int(float(match[1]) * _UNITS[match[2].lower()])
