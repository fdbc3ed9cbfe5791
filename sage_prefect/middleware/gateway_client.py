"""The inference client that operators use: through the gateway, with the run's urgency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sage_prefect.common.errors import RequestRejected
from sage_prefect.kernel.operator import OperatorContext

if TYPE_CHECKING:
    from sage_prefect.inference.client import UnifiedInferenceClient


def gateway_client(context: OperatorContext, *, timeout_s: float) -> UnifiedInferenceClient:
    """A client that names band, tenant and deadline of the run in each call.

    Raises:
        EngineUnavailable: no gateway is found.
    """
    from sage_prefect.inference.client import UnifiedInferenceClient

    return UnifiedInferenceClient.create(timeout_s=timeout_s, headers=urgency_headers(context))


def urgency_headers(context: OperatorContext) -> dict[str, str]:
    """Request headers that carry the run's urgency to the gateway's scheduler."""
    headers: dict[str, str] = {}
    if context.band:
        headers["x-sage-band"] = context.band
    if context.tenant:
        headers["x-sage-tenant"] = context.tenant
    if context.deadline_ms is not None:
        headers["x-sage-deadline-ms"] = f"{context.deadline_ms:g}"
    return headers


def blames_input(error: RequestRejected) -> bool:
    """Whether the text itself was refused (400, 413, 422), not the key, the model or the route."""
    return error.status in (400, 413, 422)
