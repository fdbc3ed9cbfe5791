"""Options that tenants and keys have in common."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Any

import typer

from sage_prefect.common.errors import SettingsError


class BandName(str, Enum):
    """Urgency."""

    CRITICAL = "critical"
    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


Bands = Annotated[
    list[BandName] | None,
    typer.Option("--band", help="The first in urgency caps its requests; none: no cap."),
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A model that it may use, * stands for any text; none: all."),
]
Rpm = Annotated[int | None, typer.Option(min=1, help="Requests per minute.")]
Tpm = Annotated[int | None, typer.Option(min=1, help="Tokens per minute.")]
Parallel = Annotated[
    int | None,
    typer.Option("--parallel", min=0, help="Requests that wait or run at once."),
]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def rights(
    bands: list[BandName] | None,
    models: list[str] | None,
    rpm: int | None,
    tpm: int | None,
    parallel: int | None,
) -> dict[str, Any]:
    """As the API takes them."""
    return {
        "bands": [band.value for band in bands or []],
        "models": models or [],
        "rpm": rpm,
        "tpm": tpm,
        "max_parallel_requests": parallel,
    }


def shown_rights(said: dict[str, Any]) -> str:
    """In a few words."""
    words = [
        f"{said[key]} {unit}"
        for key, unit in (("rpm", "req/min"), ("tpm", "tokens/min"))
        if said[key] is not None
    ]
    if said["max_parallel_requests"] is not None:
        words.append(f"{said['max_parallel_requests']} at once")
    return ", ".join(words) or "-"


def seconds_of(text: str) -> float:
    """``30d``, ``12h``, ``15m`` or ``90s`` in seconds.

    Raises:
        SettingsError: it is none of these.
    """
    found = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)([smhd])", text.strip())
    if found is None or float(found[1]) <= 0:
        raise SettingsError(
            f"{text!r} is no duration.", hint="Write a number and s, m, h or d, such as 30d."
        )
    return float(found[1]) * _UNITS[found[2]]
