"""One line for each inference request: who asked what, which engine answered, how long it took.

Never what was asked or answered. Off by default (``sage_settings.server.access_log``): a line costs
more than the rest of the bookkeeping of a request. ``--log-format json`` makes it one JSON object.
"""

from __future__ import annotations

import logging

from sage_gateway.usage import Usage

log = logging.getLogger(__name__)


def write(
    *,
    request_id: bytes,
    route: str,
    model: str,
    tenant: str | None,
    status: int,
    stream: bool,
    engine: str | None,
    attempts: int,
    queue_s: float,
    duration_s: float,
    usage: Usage,
) -> None:
    """Log a request that has ended.

    Args:
        model: as the metrics name it: a model of the configuration, never the client's own words.
        tenant: None: nobody whom a key names.
        status: 499: the client went away.
        engine: that answered, or failed last; None: none was asked.
        attempts: requests to engines; 0 for an answer from merged calls.
        queue_s, duration_s: waiting for an engine; from arrival to the last byte.
    """
    log.info(
        "request",
        extra={
            "fields": {
                "request_id": request_id.decode("ascii"),
                "route": route,
                "model": model,
                "tenant": tenant,
                "status": status,
                "stream": stream,
                "engine": engine,
                "attempts": attempts,
                "queue_ms": round(queue_s * 1e3, 3),
                "duration_ms": round(duration_s * 1e3, 3),
                "prompt_tokens": usage.prompt_tokens,
                "output_tokens": usage.output_tokens,
                "cached_tokens": usage.cached_tokens,
            }
        },
    )
