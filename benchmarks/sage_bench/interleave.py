"""Runs systems in turn, so that a drift of the machine hits all of them alike.

ABBA: odd rounds run backwards, which gives every system the same mean position. The peer is
measured a second time under the name ``<peer> (A/A)``, at the far end of the round: its ratio to
itself is the noise that the machine adds, drift included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Literal

from sage_bench.system import Case, Measurement, System
from sage_prefect.common.errors import BenchmarkError

Order = Literal["ABBA", "ABAB"]
NOISE_SUFFIX = " (A/A)"


def arranged(case: Case, noise_row: bool = True) -> Case:
    """The case with the peer first and, measured as if it were another system, last.

    Args:
        noise_row: False leaves the second one out, where measuring the peer twice is too dear.

    Raises:
        BenchmarkError: not exactly one peer, or two systems of one name.
    """
    peers = [system for system in case.systems if system.role == "peer"]
    names = [system.name for system in case.systems]
    if len(peers) != 1 or len(set(names)) != len(names):
        raise BenchmarkError(
            f"case {case.name!r} has {len(peers)} peers among the systems {names}.",
            hint="Give exactly one system the role 'peer', and each a name of its own.",
        )
    others = tuple(system for system in case.systems if system.role == "subject")
    again = replace(peers[0], name=peers[0].name + NOISE_SUFFIX, role="noise")
    return Case(case.name, (peers[0], *others, *((again,) if noise_row else ())))


def turn(systems: Sequence[System], number: int, order: Order) -> list[System]:
    """The order of systems in round ``number``."""
    backwards = order == "ABBA" and number % 2 == 1
    return list(reversed(systems)) if backwards else list(systems)


def interleave(
    cases: Sequence[Case],
    *,
    rounds: int,
    warmup: int = 1,
    order: Order = "ABBA",
    pause_s: float = 0.0,
    noise_row: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Measurement]:
    """Measure all systems of all cases, round by round; yields each measurement as it is made.

    Warm-up rounds are yielded too, marked as such. A system that raises yields a measurement with
    the error: it counts as a failure of that round and is never left out.

    Args:
        pause_s: seconds of rest before each measurement, where what ran before may still spin.
        noise_row: whether the peer is measured a second time.

    Raises:
        BenchmarkError: fewer than one round, or a case without exactly one peer.
    """
    if rounds < 1 or warmup < 0:
        raise BenchmarkError(f"{rounds} rounds after {warmup} warm-up rounds.", hint="Use >= 1.")
    prepared = [arranged(case, noise_row) for case in cases]
    for number in range(-warmup, rounds):
        for case in prepared:
            # Warm-up needs no noise row: it would warm the same system twice.
            systems = [s for s in case.systems if number >= 0 or s.role != "noise"]
            for position, system in enumerate(turn(systems, number, order)):
                if pause_s:
                    time.sleep(pause_s)
                yield _measure(case.name, system, number, position, clock)


def _measure(
    case: str, system: System, number: int, position: int, clock: Callable[[], float]
) -> Measurement:
    started_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    started = clock()
    try:
        reading = system.measure(number)
    except Exception as error:  # noqa: BLE001 - recorded as a failed round, whatever it was
        return Measurement(
            case=case,
            system=system.name,
            role=system.role,
            round=number,
            position=position,
            warmup=number < 0,
            started_at=started_at,
            values={},
            wall_s=clock() - started,
            cpu_s=None,
            detail={},
            error=f"{type(error).__name__}: {error}",
        )
    return Measurement(
        case=case,
        system=system.name,
        role=system.role,
        round=number,
        position=position,
        warmup=number < 0,
        started_at=started_at,
        values=dict(reading.values),
        wall_s=reading.wall_s,
        cpu_s=reading.cpu_s,
        detail=dict(reading.detail),
        error=None,
    )
