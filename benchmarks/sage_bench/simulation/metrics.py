"""A run's figures, by workload and in all. Goodput counts offered requests: refused, failed and
unfinished ones are missed. Latencies are the client's; throughput counts requests that end within
the measured time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sage_bench.simulation.embedding_engine import EmbeddingEngine
from sage_bench.simulation.fairness import fairness
from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.records import Column, Outcome, Records
from sage_bench.simulation.simulation import Simulation
from sage_bench.stats import samples_needed
from sage_bench.workloads.client_request import Traffic

_TIMES = ("ttft_s", "tpot_s", "max_gap_s", "e2e_s", "queued_s")
_LATENCIES = (*_TIMES, "outcome", "retry_after_s")
Figures = dict[str, float]
"""Name -> value; names are ``<workload>.<metric>`` or ``all.<metric>``. NaN: nothing to measure."""


def measure(simulation: Simulation, warmup_s: float, end_s: float) -> Figures:
    """All figures of a run over requests that arrived from ``warmup_s`` to ``end_s``."""
    records = simulation.records
    columns = records.columns()
    figures: Figures = {}
    for number, traffic in enumerate(records.traffics):
        mine = columns["traffic"] == number
        for name, value in _workload(columns, mine, traffic, warmup_s, end_s).items():
            figures[f"{traffic.name}.{name}"] = value
        if traffic.kind == "chat":
            alone = _alone_s(simulation, columns, mine, warmup_s, end_s)
            figures[f"{traffic.name}.ttft_alone_s.mean"] = alone
    figures.update(_bands(records, columns, warmup_s, end_s))
    for number, (at_s, engine) in enumerate(simulation.slowdowns):
        for name, value in _shift(columns, records.engines.index(engine), at_s).items():
            figures[f"fault{number}.{name}"] = value
    for name, value in _cluster(simulation, records, warmup_s, end_s).items():
        figures[f"all.{name}"] = value
    return figures


def good(columns: dict[str, Column], traffic: Traffic) -> NDArray[np.bool_]:
    """Whether each request was answered within all of its workload's SLOs."""
    slo = traffic.slo
    ok: NDArray[np.bool_] = columns["outcome"] == Outcome.DONE
    ttft = columns["ttft_s"] if traffic.stream else columns["e2e_s"]
    if slo.ttft_s is not None:
        ok = ok & (ttft <= slo.ttft_s)
    if slo.tpot_s is not None:
        tpot = columns["tpot_s"]
        ok = ok & (~np.isfinite(tpot) | (tpot <= slo.tpot_s))  # one token has no TPOT
    if slo.e2e_s is not None:
        ok = ok & (columns["e2e_s"] <= slo.e2e_s)
    return ok


def _workload(
    columns: dict[str, Column],
    mine: NDArray[np.bool_],
    traffic: Traffic,
    warmup_s: float,
    end_s: float,
) -> Figures:
    at = columns["at"]
    offered = mine & (at >= warmup_s) & (at < end_s)
    chosen = {name: columns[name][offered] for name in _LATENCIES}
    count = int(offered.sum())
    outcome = chosen["outcome"]
    span = end_s - warmup_s
    figures: Figures = {
        "offered": float(count),
        "goodput": float(good(chosen, traffic).mean()) if count else math.nan,
        "good_per_s": float(good(chosen, traffic).sum()) / span,
        "rejected": _share(outcome == Outcome.REJECTED),
        "failed": _share(outcome == Outcome.FAILED),
        "unfinished": _share(outcome == Outcome.UNFINISHED),
    }
    refused = outcome == Outcome.REJECTED
    told = np.isfinite(chosen["retry_after_s"])
    figures["told_when"] = float(told[refused].mean()) if refused.any() else 1.0
    done = outcome == Outcome.DONE
    for name in _TIMES:
        known = chosen[name][done & np.isfinite(chosen[name])]
        for label, q in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100)):
            figures[f"{name}.{label}"] = float(np.percentile(known, q)) if len(known) else math.nan
        figures[f"{name}.mean"] = float(known.mean()) if len(known) else math.nan
    figures["worst_tenant_ttft_s.p99"] = _worst_tenant(
        columns["tenant"][offered][done], chosen["ttft_s"][done]
    )
    ended = at + columns["e2e_s"]
    finished = mine & (columns["outcome"] == Outcome.DONE) & (ended >= warmup_s) & (ended < end_s)
    prompt, output = columns["prompt"][finished].sum(), columns["output"][finished].sum()
    if traffic.kind == "embedding":
        output = 0.0
    figures["tokens_per_s"] = float(prompt + output) / span
    figures["output_tokens_per_s"] = float(output) / span
    total = columns["prompt"][finished].sum()
    figures["cached_share"] = float(columns["cached"][finished].sum() / total) if total else 0.0
    return figures


def _alone_s(
    simulation: Simulation,
    columns: dict[str, Column],
    mine: NDArray[np.bool_],
    warmup_s: float,
    end_s: float,
) -> float:
    """Mean time to first token of the answered prompts, had each found its engine empty, with as
    much cached as it found: what no choice of engines comes below without more hits."""
    chosen = mine & (columns["outcome"] == Outcome.DONE)
    chosen &= (columns["at"] >= warmup_s) & (columns["at"] < end_s)
    uncached = np.maximum(1.0, columns["prompt"] - columns["cached"])
    alone = np.full(len(uncached), math.nan)
    for node in simulation.fleet.nodes:
        if isinstance(node.engine, LlmEngine):
            spec, here = node.engine.spec, columns["engine"] == node.index
            steps = np.ceil(uncached[here] / spec.max_num_batched_tokens)
            alone[here] = spec.profile.a * uncached[here] + spec.profile.c0 * steps
    return float(alone[chosen].mean()) if chosen.any() else math.nan


def _worst_tenant(tenants: Column, ttft: Column) -> float:
    """The largest p99 of a tenant with enough requests to have one."""
    counts = np.bincount(tenants.astype(np.int64)) if len(tenants) else np.zeros(0)
    found = [
        float(np.percentile(ttft[tenants == tenant], 99))
        for tenant in np.flatnonzero(counts >= samples_needed(0.99))
    ]
    return max(found, default=math.nan)


def _bands(records: Records, columns: dict[str, Column], start_s: float, end_s: float) -> Figures:
    """Tokens/s of what ended in time, by band."""
    ended = columns["at"] + columns["e2e_s"]
    inside = (columns["outcome"] == Outcome.DONE) & (ended >= start_s) & (ended < end_s)
    figures: Figures = {}
    for number, traffic in enumerate(records.traffics):
        mine = inside & (columns["traffic"] == number)
        tokens = columns["prompt"][mine].sum()
        if traffic.kind != "embedding":
            tokens += columns["output"][mine].sum()
        name = f"band.{traffic.band.label}.tokens_per_s"
        figures[name] = figures.get(name, 0.0) + float(tokens) / (end_s - start_s)
    return figures


def _shift(columns: dict[str, Column], engine: int, at_s: float) -> Figures:
    """An engine's share of what was dispatched in 60 s before a fault, and from 10 s to 40 s after
    it."""
    sent = columns["at"] + columns["queued_s"]
    mine = columns["engine"] == engine
    before = (sent >= at_s - 60) & (sent < at_s)
    after = (sent >= at_s + 10) & (sent < at_s + 40)
    return {"share_before": _share(mine[before]), "share_after": _share(mine[after])}


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else math.nan


def _cluster(simulation: Simulation, records: Records, warmup_s: float, end_s: float) -> Figures:
    columns = records.columns()
    span = simulation.queue.now or math.nan
    llm = [n for n in simulation.fleet.nodes if isinstance(n.engine, LlmEngine)]
    figures: Figures = {
        "wasted_tokens": float(simulation.fleet.wasted_tokens),
        "recomputed_tokens": float(
            sum(n.engine.recomputed_tokens for n in llm if isinstance(n.engine, LlmEngine))
        ),
        "preemptions": float(
            sum(n.engine.preemptions for n in llm if isinstance(n.engine, LlmEngine))
        ),
        "events": float(simulation.queue.events),
        "llm_busy": float(np.mean([n.engine.busy_s for n in llm]) / span) if llm else math.nan,
        "hottest_engine": math.nan,  # unless something was answered
    }
    embed = [n.engine for n in simulation.fleet.nodes if isinstance(n.engine, EmbeddingEngine)]
    if embed:
        figures["embedding_busy"] = float(np.mean([e.busy_s for e in embed]) / span)
    done = (columns["outcome"] == Outcome.DONE) & (columns["at"] >= warmup_s)
    if llm and done.any():
        where = columns["engine"][done].astype(np.int64)
        tokens = (columns["prompt"] + columns["output"])[done]
        by_engine = np.bincount(where, weights=tokens, minlength=len(simulation.fleet.nodes))
        loads = by_engine[[n.index for n in llm]]
        if loads.mean():
            figures["hottest_engine"] = float(loads.max() / loads.mean())
    if llm and isinstance(llm[0].engine, LlmEngine):
        profile = llm[0].engine.spec.profile
        fair = fairness(records, profile, simulation.weights, warmup_s, end_s)
        figures["jain"] = math.nan if fair.jain is None else fair.jain
        figures["max_service_difference_ms"] = (
            math.nan if fair.max_difference_ms is None else fair.max_difference_ms
        )
    return figures
