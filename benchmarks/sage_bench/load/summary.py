"""What a run says: latencies, goodput, failures, and whether the client can be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sage_bench.load.record import ABANDONED, CLIENT_LIMIT, RequestRecord
from sage_bench.load.run import LoadRun
from sage_bench.stats import samples_needed

MAX_SCHEDULE_ERROR_S = 0.005
MAX_CLIENT_CPU_SHARE = 0.9
QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Objectives:
    """Service level objectives in seconds; one that is not given is met by every whole answer."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def met_by(self, record: RequestRecord) -> bool:
        """Whether the answer came whole and in time. A limit on what the request does not have
        (the first token of an answer that is no stream) does not count."""
        return record.ok and all(
            limit is None or value is None or value <= limit
            for limit, value in (
                (self.ttft_s, record.ttft_s),
                (self.tpot_s, record.tpot_s),
                (self.e2e_s, record.e2e_s),
            )
        )


def summarise(run: LoadRun, objectives: Objectives | None = None) -> dict[str, Any]:
    """A run's figures as plain values.

    ``valid`` is False, with the reasons in ``problems``, when the client was late (p99 of the
    schedule error above 5 ms; open loop), out of CPU, or did not send requests for want of
    descriptors. Rates are per second of the schedule after warm-up. A quantile is None where
    there are too few requests for it (:func:`sage_bench.stats.samples_needed`).
    """
    goals = objectives or Objectives()
    counted = [record for record in run.records if not record.warmup]
    problems = list(_problems(run, counted))
    seconds = max(run.scheduled_s - run.warmup_s, 1e-9)
    groups = sorted({record.band for record in counted})
    return {
        "valid": not problems,
        "problems": problems,
        "loop": run.loop,
        "began_at": run.began_at.isoformat(),
        "interrupted": run.interrupted,
        "seconds": seconds,
        "warmup_requests": len(run.records) - len(counted),
        "objectives_ms": {
            name: None if value is None else value * 1e3
            for name, value in (
                ("ttft", goals.ttft_s),
                ("tpot", goals.tpot_s),
                ("e2e", goals.e2e_s),
            )
        },
        **_figures(counted, seconds, goals),
        "bands": {
            band: _figures([r for r in counted if r.band == band], seconds, goals)
            for band in groups
            if len(groups) > 1
        },
        "schedule_error_ms": quantiles(r.schedule_error_s * 1e3 for r in counted),
        "connections_opened": run.connections_opened,
        "most_in_flight": run.most_in_flight,
        "client": run.client.to_json(),
    }


def quantiles(values: Iterable[float | None]) -> dict[str, float | None]:
    """Count, mean, quantiles and maximum of the values that are known."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    found: dict[str, float | None] = {"n": len(known)}
    if not len(known):
        return found
    found["mean"] = float(known.mean())
    for q in QUANTILES:
        enough = q == 0.5 or len(known) >= samples_needed(q)
        found[f"p{q * 100:g}"] = float(np.quantile(known, q)) if enough else None
    found["max"] = float(known.max())
    return found


def _figures(records: Sequence[RequestRecord], seconds: float, goals: Objectives) -> dict[str, Any]:
    whole = [record for record in records if record.ok]
    good = sum(goals.met_by(record) for record in records)
    # Who left on purpose was offered and cannot be served: no failure, no success.
    failed = [record for record in records if not record.ok and record.error != ABANDONED]
    offered = len(records)

    def milliseconds(value: Callable[[RequestRecord], float | None]) -> dict[str, float | None]:
        return quantiles(None if (v := value(record)) is None else v * 1e3 for record in whole)

    return {
        "offered": offered,
        "completed": len(whole),
        "failed": len(failed),
        "errors": dict(Counter(record.error for record in records if not record.ok)),
        "statuses": dict(Counter(str(record.status) for record in records)),
        "with_retry_after": sum(record.retry_after_s is not None for record in failed),
        "offered_per_s": offered / seconds,
        "completed_per_s": len(whole) / seconds,
        "goodput_per_s": good / seconds,
        "good_share": good / offered if offered else None,
        "prompt_tokens_per_s": sum(record.prompt_tokens or 0 for record in whole) / seconds,
        "output_tokens_per_s": sum(record.output_tokens or 0 for record in whole) / seconds,
        "cached_tokens": sum(record.cached_tokens or 0 for record in whole),
        "chunks": sum(record.chunks for record in records),
        "answer_bytes": sum(record.answer_bytes for record in records),
        "ttft_ms": milliseconds(lambda record: record.ttft_s),
        "tpot_ms": milliseconds(lambda record: record.tpot_s),
        "max_gap_ms": milliseconds(lambda record: record.max_gap_s),
        "e2e_ms": milliseconds(lambda record: record.e2e_s),
        "queue_ms": quantiles(record.queue_ms for record in whole),
    }


def _problems(run: LoadRun, counted: Sequence[RequestRecord]) -> Iterable[str]:
    if not counted:
        yield "no request after the warm-up"
        return
    late = float(np.quantile([record.schedule_error_s for record in counted], 0.99))
    if run.loop == "open" and late > MAX_SCHEDULE_ERROR_S:
        yield (
            f"schedule error p99 {late * 1e3:.1f} ms is above {MAX_SCHEDULE_ERROR_S * 1e3:g} ms: "
            "the client could not keep its schedule"
        )
    if run.client.cpu_share > MAX_CLIENT_CPU_SHARE:
        yield (
            f"the client used {run.client.cpu_share:.0%} of a core: its own work is in the figures"
        )
    unsent = sum(record.error == CLIENT_LIMIT for record in run.records)
    if unsent:
        yield f"{unsent} requests were not sent: too many in flight"
