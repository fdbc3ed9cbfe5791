"""Who got how much: service per tenant in engine-milliseconds, Jain's index, service differences.

Service of a request is what it cost an engine (``a * uncached + output * (c0/B + b + g*context)``
at a reference batch of B = 128), spread evenly over the time that it spent inside. A tenant counts
in a window while it is backlogged: it has a request that waits for its first token at each end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sage_bench.simulation.records import Column, Records
from sage_bench.simulation.step_profile import StepProfile

_BATCH = 128


@dataclass(frozen=True)
class Fairness:
    """Figures over windows with at least two backlogged tenants of one band; None: there were none.

    Tenants of different bands are not compared: bands are meant to be unequal. ``jain`` is the mean
    index of service / weight, ``max_difference_ms`` VTC's metric: the largest
    gap in accumulated service / weight between two tenants while both stay backlogged.
    """

    jain: float | None
    max_difference_ms: float | None
    windows: int


def service_ms(columns: Mapping[str, Column], profile: StepProfile) -> Column:
    """Engine-milliseconds of each finished request; 0 for the others."""
    prompt, output, cached = columns["prompt"], columns["output"], columns["cached"]
    per_token = profile.c0 / _BATCH + profile.b + profile.g * (prompt + output / 2)
    cost = 1000 * (profile.a * (prompt - cached) + output * per_token)
    return np.asarray(np.where(columns["outcome"] == 1, cost, 0.0))


def fairness(
    records: Records,
    profile: StepProfile,
    weights: Mapping[str, float],
    start_s: float,
    end_s: float,
    window_s: float = 10.0,
) -> Fairness:
    """Fairness between ``start_s`` and ``end_s``."""
    columns = records.columns()
    windows = int((end_s - start_s) // window_s)
    if windows < 1:
        return Fairness(None, None, 0)
    bands = np.asarray([int(traffic.band) for traffic in records.traffics])
    band = bands[columns["traffic"].astype(np.int64)] if len(bands) else np.zeros(0)
    jain: list[float] = []
    worst = 0.0
    for number in sorted(set(bands.tolist())):
        mine = {name: column[band == number] for name, column in columns.items()}
        indices, difference = _of_band(mine, records, profile, weights, start_s, windows, window_s)
        jain += indices
        worst = max(worst, difference)
    return Fairness(float(np.mean(jain)), worst, len(jain)) if jain else Fairness(None, None, 0)


def _of_band(
    columns: Mapping[str, Column],
    records: Records,
    profile: StepProfile,
    weights: Mapping[str, float],
    start_s: float,
    windows: int,
    window_s: float,
) -> tuple[list[float], float]:
    tenants = len(records.tenants)
    who = columns["tenant"].astype(np.int64)
    cost = service_ms(columns, profile)
    at, done = columns["at"], np.isfinite(columns["e2e_s"])
    begin = at + np.nan_to_num(columns["queued_s"])
    finish = np.where(done, at + np.nan_to_num(columns["e2e_s"]), begin)
    first = np.where(np.isfinite(columns["ttft_s"]), at + columns["ttft_s"], np.inf)
    first = np.where(columns["outcome"] == 2, at, first)  # a refused request does not wait
    share = np.asarray([weights.get(name, 1.0) for name in records.tenants])
    service = np.zeros((windows, tenants))
    waits = np.zeros((windows + 1, tenants), dtype=bool)
    length = np.maximum(finish - begin, 1e-9)
    for i in range(windows + 1):
        edge = start_s + i * window_s
        waiting = (at <= edge) & (first > edge)
        waits[i, np.unique(who[waiting])] = True
        if i == windows:
            break
        inside = np.minimum(finish, edge + window_s) - np.maximum(begin, edge)
        part = cost * np.clip(inside / length, 0.0, 1.0)
        service[i] = np.bincount(who, weights=part, minlength=tenants) / share
    backlogged = waits[:-1] & waits[1:]
    return _figures(service, backlogged)


def _figures(service: Column, backlogged: NDArray[np.bool_]) -> tuple[list[float], float]:
    """Jain's index of each window with two backlogged tenants; the largest difference."""
    indices: list[float] = []
    worst = 0.0
    lead = np.zeros((service.shape[1], service.shape[1]))
    for got, active in zip(service, backlogged, strict=True):
        both = active[:, None] & active[None, :]
        lead = np.where(both, lead + got[:, None] - got[None, :], 0.0)
        if active.sum() < 2:
            continue
        worst = max(worst, float(lead.max()))
        x = got[active]
        square = float((x**2).sum())
        indices.append(float(x.sum()) ** 2 / (len(x) * square) if square > 0 else 1.0)
    return indices, worst
