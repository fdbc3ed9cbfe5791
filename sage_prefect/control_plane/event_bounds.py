"""What the outside world may say in numbers: absurd ones are taken out before any policy sees them.

Engines report token counts and clients wish for deadlines; neither may bring infinite, negative or
thousand-digit numbers into the books, where one NaN would spoil an order for good.

Never compiled (``native/compiled/generate.py``): compiled code takes a field's type for
granted, and raises where the value is another.
"""

from __future__ import annotations

from dataclasses import replace

from sage_prefect.control_plane.events import (
    BandSpec,
    BatchDone,
    BatchFailed,
    Done,
    EngineGauges,
    EngineSpec,
    Limits,
    Progress,
    RequestInfo,
    TenantSpec,
)

MAX_TOKENS = 1 << 32
"""More than any prompt or answer has; floats are exact far beyond it."""
MAX_NUMBER = 1e9
"""More than any time in seconds, price or weight is; products of a few stay finite."""
MAX_CONCURRENCY = 1 << 20
FAR = 1e15
"""Seconds: no clock shows so much."""


def bounded_request(info: RequestInfo) -> RequestInfo:
    """``info`` with counts between 0 and ``MAX_TOKENS`` and times that can be compared.

    A deadline that is no time, and a promise that is not a positive one, count as not given.
    """
    output, ttft, tpot = info.output_estimate, info.ttft_slo_s, info.tpot_slo_s
    if (
        0 <= info.prompt_tokens <= MAX_TOKENS
        and info.body_bytes >= 0
        and (output is None or 0 <= output <= MAX_TOKENS)
        and (ttft is None or 0 < ttft <= MAX_NUMBER)
        and (tpot is None or 0 < tpot <= MAX_NUMBER)
        and (info.deadline is None or -FAR <= info.deadline <= FAR)
        and (not info.inputs or all(map(is_count, info.inputs)))
    ):
        return info
    deadline = info.deadline
    if deadline is not None and not deadline <= FAR:
        deadline = None
    return replace(
        info,
        prompt_tokens=_bounded(info.prompt_tokens) or 0,
        body_bytes=max(0, info.body_bytes),
        output_estimate=_bounded(output),
        ttft_slo_s=ttft if ttft is not None and 0 < ttft <= MAX_NUMBER else None,
        tpot_slo_s=tpot if tpot is not None and 0 < tpot <= MAX_NUMBER else None,
        deadline=None if deadline is None else max(deadline, -FAR),
        inputs=tuple(_bounded(tokens) or 0 for tokens in info.inputs),
    )


def bounded_done(done: Done) -> Done:
    """``done`` without the counts that cannot be true: they count as not reported."""
    prompt, output, cached = done.prompt_tokens, done.output_tokens, done.cached_tokens
    if is_count(prompt) and is_count(output) and is_count(cached):
        return done
    return replace(
        done,
        prompt_tokens=prompt if is_count(prompt) else None,
        output_tokens=output if is_count(output) else None,
        cached_tokens=cached if is_count(cached) else None,
    )


def bounded_gauges(gauges: EngineGauges) -> EngineGauges:
    """``gauges`` without what is no finite number: it counts as not said."""
    values = (gauges.running, gauges.waiting, gauges.kv_usage, gauges.preemptions)
    return EngineGauges(*(v if v is not None and -FAR <= v <= FAR else None for v in values))


def is_count(value: float | None) -> bool:
    """Whether a number of tokens may be true: no fraction of one; None, not reported, is."""
    return value is None or (isinstance(value, int) and 0 <= value <= MAX_TOKENS)


def is_progress(event: Progress) -> bool:
    """Whether a stream's progress is a count."""
    return is_count(event.chunks)


def bounded_batch(event: BatchDone | BatchFailed) -> BatchDone | BatchFailed | None:
    """``event`` without a count that cannot be true; None: no batch has such a number."""
    number: object = event.batch_id
    if not isinstance(number, int):
        return None
    if isinstance(event, BatchDone) and not is_count(event.prompt_tokens):
        return BatchDone(event.batch_id)
    return event


def is_measurable(spec: EngineSpec) -> bool:
    """Whether an engine's window, price, profile and tokens can be true."""
    profile = spec.profile
    numbers = [spec.price]
    if profile is not None:
        numbers += [profile.c0, profile.a, profile.b, profile.g, profile.s0, profile.alpha]
    return (
        1 <= spec.max_concurrency <= MAX_CONCURRENCY
        and all(0 <= number <= MAX_NUMBER for number in numbers)
        and 0 < spec.weight <= MAX_NUMBER
        and is_count(spec.kv_tokens)
        and is_count(spec.max_batch_tokens)
    )


def is_promise(spec: BandSpec) -> bool:
    """Whether a band's times are positive and its shares are shares."""
    times = (spec.ttft_slo_s, spec.tpot_slo_s)
    shares = (spec.min_share, spec.reject_share or 0.0)
    age = spec.age_limit_s
    return (
        all(wish is None or 0 < wish <= MAX_NUMBER for wish in times)
        and all(0 <= share <= 1 for share in shares)
        and (age is None or 0 <= age <= MAX_NUMBER)
    )


def is_share(spec: TenantSpec) -> bool:
    """Whether a tenant's weight is a positive number and its limits are counts."""
    caps = (spec.max_queued, spec.max_running)
    return 1 / MAX_NUMBER <= spec.weight <= MAX_NUMBER and all(c is None or c >= 0 for c in caps)


def are_limits(limits: Limits) -> bool:
    """Whether all of them can be compared: none is negative or NaN, no time without end."""
    counts = (limits.max_queued_requests, limits.max_queued_bytes, limits.max_retries)
    times = (limits.queue_timeout_s, limits.unavailable_wait_s)
    return all(n >= 0 for n in counts) and all(0 <= t <= MAX_NUMBER for t in times)


def _bounded(value: int | None) -> int | None:
    if value is None or value != value:
        return None
    return int(min(MAX_TOKENS, max(0, value)))
