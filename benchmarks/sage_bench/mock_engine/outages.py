"""Faults of a whole engine, and orders for any fault: what, and when. Pure.

Faults of single answers are in :mod:`sage_bench.mock_engine.faults`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from sage_bench.mock_engine.faults import Fault, FaultKind
from sage_prefect.common.errors import BenchmarkError, UnknownNameError

OutageKind = Literal["crash", "half_open", "stall", "slow", "refuse", "cold"]
DAY_S = 86_400.0
_NEEDS_SECONDS = ("half_open", "stall", "refuse", "cold")


@dataclass(frozen=True, slots=True)
class Outage:
    """What befalls a whole engine; seconds are the engine's.

    ===========  ==============================================================================
    kind         what happens
    ===========  ==============================================================================
    crash        all inside is lost, connections are reset, nobody listens for ``seconds`` (0)
    half_open    all inside is lost without a word: connections stay open, new ones are taken,
                 nothing is read or answered; after ``seconds`` they are reset
    stall        no step begins for ``seconds``; connections stay open
    slow         every step takes ``factor`` times as long (for ``seconds``; 0: for good)
    refuse       503 for all new requests for ``seconds``; what runs goes on; ``/health`` is 200
    cold         503 for everything for ``seconds``, ``/health`` included: it loads its model
    ===========  ==============================================================================

    After ``crash`` and ``half_open`` the engine is cold for ``cold_s``.

    Raises:
        BenchmarkError: a value makes no sense.
        UnknownNameError: no such kind.
    """

    kind: OutageKind
    seconds: float = 0.0
    factor: float = 2.0
    cold_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(OutageKind):
            raise UnknownNameError("outage", str(self.kind), get_args(OutageKind))
        for name, value in (("seconds", self.seconds), ("cold_s", self.cold_s)):
            if not _is_number(value) or not 0 <= value <= DAY_S:
                raise BenchmarkError(
                    f"outage {self.kind}: {name}={value!r} is not in [0, {DAY_S:g}]."
                )
        if self.kind in _NEEDS_SECONDS and not self.seconds:
            raise BenchmarkError(
                f"outage {self.kind} of 0 seconds.", hint="Say how long: seconds, above 0."
            )
        if not _is_number(self.factor) or not 0 < self.factor < 1e6:
            raise BenchmarkError(f"outage {self.kind}: factor {self.factor!r} is not in (0, 1e6).")


AnyFault: TypeAlias = Fault | Outage


@dataclass(frozen=True, slots=True)
class FaultOrder:
    """A fault that is to happen.

    Args:
        fault: what.
        at_s: after so many engine seconds.
        engine: the engine's number; None: all.
    """

    fault: AnyFault
    at_s: float = 0.0
    engine: int | None = None

    @classmethod
    def from_json(cls, content: Any) -> FaultOrder:
        """An order from plain values: the fault's own keys, ``at_s`` and ``engine``.

        Raises:
            BenchmarkError: no object, a missing or unknown key, or a wrong value.
            UnknownNameError: no such kind or key.
        """
        if not isinstance(content, dict) or "kind" not in content:
            raise BenchmarkError(
                "a fault must be an object with a kind.", hint="Kinds: " + ", ".join(KINDS) + "."
            )
        rest = dict(content)
        at_s, engine = rest.pop("at_s", 0.0), rest.pop("engine", None)
        if not _is_number(at_s) or not 0 <= at_s <= DAY_S:
            raise BenchmarkError(f"at_s={at_s!r} of a fault is not in [0, {DAY_S:g}].")
        if engine is not None and (type(engine) is not int or engine < 0):
            raise BenchmarkError(f"engine={engine!r} of a fault is no engine's number.")
        if rest["kind"] not in KINDS:
            raise UnknownNameError("fault", str(rest["kind"]), KINDS)
        made: type[Fault] | type[Outage]
        made = Outage if rest["kind"] in get_args(OutageKind) else Fault
        known = [field.name for field in fields(made)]
        for key in rest:
            if key not in known:
                raise UnknownNameError(
                    f"key of the fault {rest['kind']}", str(key), [*known, "at_s", "engine"]
                )
        return cls(made(**rest), float(at_s), engine)

    @classmethod
    def parse(cls, text: str) -> FaultOrder:
        """An order from a command line: ``crash,engine=0,at_s=5,seconds=2``.

        Raises:
            BenchmarkError: a part is not ``key=value``, or a value makes no sense.
            UnknownNameError: no such kind or key.
        """
        kind, *pairs = (part.strip() for part in text.split(","))
        content: dict[str, Any] = {"kind": kind}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals:
                raise BenchmarkError(
                    f"fault {text!r}: {pair!r} is not key=value.", hint=f"E.g. {_EXAMPLE}."
                )
            content[key] = _number(text, key, value)
        return cls.from_json(content)


KINDS: tuple[str, ...] = (*get_args(OutageKind), *get_args(FaultKind))
_EXAMPLE = "crash,engine=0,at_s=5,seconds=2"


def _number(text: str, key: str, value: str) -> float | int | None:
    if value == "none":
        return None
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        raise BenchmarkError(f"fault {text!r}: {key}={value!r} is no number.") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
