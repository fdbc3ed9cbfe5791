"""What decides in a simulation: the production manager, or a baseline that speaks its schema."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sage_bench.simulation.baselines import BASELINES, Future
from sage_prefect.common.errors import UnknownNameError
from sage_prefect.control_plane.events import Action, Event, Limits
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES


class Controller(Protocol):
    """Events in, actions out."""

    def handle(self, event: Event, now: float) -> Sequence[Action]:
        """Take an event at ``now`` (seconds) and say what to do, in order."""


ControllerFactory = Callable[[], Controller]


def controller_names() -> tuple[str, ...]:
    """All names that a scenario's ``policies`` may use: policies, then ``baseline:`` ones."""
    return (*POLICIES, *(f"baseline:{name}" for name in BASELINES))


def foresees(name: str) -> bool:
    """Whether this controller is told what no gateway can know."""
    baseline = BASELINES.get(name.removeprefix("baseline:")) if ":" in name else None
    return baseline is not None and baseline.foresees


def check_controller(name: str) -> str:
    """``name``, if a controller has it.

    Raises:
        UnknownNameError: lists the known ones.
    """
    if name not in controller_names():
        raise UnknownNameError("policy or baseline", name, controller_names())
    return name


def controller_factory(
    name: str,
    limits: Limits,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    future: Callable[[], Future] | None = None,
) -> ControllerFactory:
    """Makes controllers of this name.

    Args:
        future: tells baselines that foresee what will be asked for.

    Raises:
        UnknownNameError: lists the known ones.
        SettingsError: an option of a baseline is unknown or wrong.
    """
    check_controller(name)
    given = options or {}
    kind, _, baseline = name.partition(":")
    if baseline:
        cls = BASELINES[baseline]
        cls.check_options(given)
        if cls.foresees and future is not None:
            given = {**given, "future": future()}
        return lambda: cls(**given)
    return lambda: ControlPlaneManager(kind, limits, remember=0, seed=seed)
