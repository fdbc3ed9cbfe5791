"""What a client is told when its request cannot be served."""

from __future__ import annotations

from sage_prefect.control_plane.events import BatchFailed, Failed, FailureCause, Reject
from sage_prefect.control_plane.ledger import Ledger

_LISTED = 20
_SHOWN_NAME = 100


def unavailable(ledger: Ledger, model: str) -> str:
    """Why no engine of ``model`` takes requests."""
    states = ", ".join(
        f"{entry.name} is {entry.state.value}" for entry in ledger.members(model)[:_LISTED]
    )
    return f"No engine for model {model!r} is available ({states or 'all were removed'})."


def unknown_model(ledger: Ledger, model: str) -> str:
    """That nobody serves ``model``, and which models there are."""
    known = ledger.models()
    listed = ", ".join(known[:_LISTED]) or "none"
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    shown = model if len(model) <= _SHOWN_NAME else model[:_SHOWN_NAME] + "..."
    return f"The model {shown!r} does not exist. Known models: {listed}{more}."


def failure_reply(event: Failed) -> Reject:
    """The answer to a request whose last attempt failed."""
    return _failed(event.request_id, event)


def batch_failure_reply(request_id: str, event: BatchFailed) -> Reject:
    """The answer to a request with an input whose last attempt failed, or that is bad itself."""
    if not event.bad_input:
        return _failed(request_id, event)
    message = event.message or f"Engine {event.engine!r} refused an input."
    return Reject(request_id, 400, "engine_rejected", message, engine=event.engine)


def _failed(request_id: str, event: Failed | BatchFailed) -> Reject:
    status = 504 if event.cause is FailureCause.TIMEOUT else 502
    message = event.message or f"Engine {event.engine!r} failed ({event.cause.value})."
    return Reject(
        request_id,
        status,
        "engine_timeout" if status == 504 else "engine_failed",
        message,
        engine=event.engine,
    )
