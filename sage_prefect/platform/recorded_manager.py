"""What a recorder says of its manager in the head of a log, and the same manager made from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_prefect import __version__
from sage_prefect.common.errors import CorruptFileError
from sage_prefect.control_plane.event_json import event_of, to_object
from sage_prefect.control_plane.events import LimitsChanged
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import check_policy


def settings_of(manager: ControlPlaneManager) -> dict[str, Any]:
    """What a replay must know of a manager that has handled nothing yet; plain JSON values."""
    limits = to_object(LimitsChanged(manager.limits))
    return {
        "sage": __version__,
        "policy": manager.policy.name,
        "seed": manager.seed,
        "limits": limits["limits"],
    }


def manager_of(settings: Mapping[str, Any]) -> ControlPlaneManager:
    """A manager as the recorded one was at its beginning.

    Raises:
        CorruptFileError: the settings are not those of :func:`settings_of`.
        UnknownNameError: this SAGE does not know the policy.
    """
    policy, seed = settings.get("policy"), settings.get("seed")
    if not isinstance(policy, str) or type(seed) is not int:
        raise CorruptFileError(
            "the head of this event log does not say which policy and seed it was recorded with.",
            hint="Only logs of a gateway can be replayed by themselves.",
        )
    changed = event_of({"type": "LimitsChanged", "limits": settings.get("limits")})
    assert isinstance(changed, LimitsChanged)
    return ControlPlaneManager(check_policy(policy), changed.limits, seed=seed)
