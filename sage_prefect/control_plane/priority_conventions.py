"""How a client says how urgent a request is: the field's conventions, translated into bands.

They differ in polarity, and several may be in one request. The first of these that is given counts:

1. header ``x-sage-band``: the name of a band;
2. header ``x-llm-d-inference-objective``: the name of a band (with llm-d it names an objective
   that the operator defined; one that is no band counts as not given);
3. body ``priority``: vLLM's and LiteLLM's integer, where a *lower* number is more urgent. 0 is what
   their clients send when nobody chose, and counts as not given;
4. body ``service_tier``: OpenAI's word, ``priority`` being *more* urgent, ``flex`` and ``batch``
   less; ``auto``, ``default`` and unknown ones count as not given.

What a tenant may claim at most is not decided here: the classifier caps the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_prefect.common.errors import RequestRejected
from sage_prefect.control_plane.events import Band

BATCH_PRIORITY = 100
"""A ``priority`` from here on means work that nobody waits for."""

_BANDS = {band.label: band for band in Band}
_BATCH_TIERS = ("flex", "batch")


def wanted_band(
    body: Mapping[str, Any],
    default: Band,
    *,
    band: str | None = None,
    objective: str | None = None,
) -> Band:
    """The band that a request asks for, whatever it is entitled to.

    Args:
        body: the parsed JSON object; ``priority`` and ``service_tier`` are read.
        default: the band if nothing is said; ``priority`` and ``service_tier`` move from here.
        band: value of ``x-sage-band``.
        objective: value of ``x-llm-d-inference-objective``.

    Raises:
        RequestRejected: 400, the band is unknown or ``priority`` is no integer.
    """
    # A wrong priority is wrong also where a header decides.
    by_priority = _by_priority(body["priority"], default) if "priority" in body else None
    if band is not None:
        return _named(band)
    if objective is not None:
        named = _BANDS.get(objective.strip().lower())
        if named is not None:
            return named
    if by_priority is not None:
        return by_priority
    tier = body.get("service_tier")
    if tier is None:
        return default
    if tier in _BATCH_TIERS:
        return Band.BATCH
    return _more_urgent(default) if tier == "priority" else default


def _by_priority(value: Any, default: Band) -> Band | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestRejected(
            f"The field 'priority' has the value {str(value)[:40]!r}; it must be an integer, "
            "where a lower one is more urgent.",
            status=400,
            code="invalid_field",
        )
    if value == 0:
        return None
    if value < 0:
        return _more_urgent(default)
    return Band.BATCH if value >= BATCH_PRIORITY else Band(min(default + 1, Band.BATCH))


def _more_urgent(band: Band) -> Band:
    return Band(max(band - 1, Band.CRITICAL))


def _named(value: str) -> Band:
    band = _BANDS.get(value.strip().lower())
    if band is None:
        raise RequestRejected(
            f"Header x-sage-band has the value {value[:40]!r}; known bands: {', '.join(_BANDS)}.",
            status=400,
            code="invalid_header",
        )
    return band
