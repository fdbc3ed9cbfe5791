"""The currency of fairness and admission: engine-seconds of a request.

An output token costs its share of an iteration's fixed time, its own, and its context's; a prompt
token what prefill takes. One currency serves long and short, chat and batch work.
"""

from __future__ import annotations

from sage_prefect.control_plane.engine_model import EngineModel
from sage_prefect.control_plane.events import Done
from sage_prefect.control_plane.scheduled_request import ScheduledRequest

DEFAULT_OUTPUT = 256
"""Tokens of an answer of which nothing is known."""
_REFERENCE_BATCH = 128
"""Sequences that share an iteration's fixed cost."""


def predicted_s(model: EngineModel, request: ScheduledRequest) -> float:
    """What a request is likely to take."""
    info, at = request.info, model.reference
    prompt, output = info.prompt_tokens, info.output_estimate or DEFAULT_OUTPUT
    return at.a * prompt + output * (at.c0 / _REFERENCE_BATCH + at.b + at.g * (prompt + output / 2))


def token_s(model: EngineModel, request: ScheduledRequest) -> float:
    """What the next token of a request's answer takes."""
    at = model.reference
    return at.c0 / _REFERENCE_BATCH + at.b + at.g * (request.info.prompt_tokens + request.chunks)


def served_s(model: EngineModel, request: ScheduledRequest, done: Done) -> float:
    """What an answered request has taken, less what its engine had cached."""
    at = model.reference
    prompt = request.info.prompt_tokens if done.prompt_tokens is None else done.prompt_tokens
    cached = request.cached if done.cached_tokens is None else float(done.cached_tokens)
    output = request.chunks if done.output_tokens is None else done.output_tokens
    step = at.c0 / _REFERENCE_BATCH + at.b + at.g * (prompt + output / 2)
    saved = at.a * min(prompt, max(0.0, cached))
    return max(0.0, at.a * prompt + output * step - saved)
