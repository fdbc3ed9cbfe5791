"""The inference client that operators use: through the gateway, with the run's urgency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sage_prefect.common.errors import RequestRejected
from sage_prefect.kernel.operator import OperatorContext

if TYPE_CHECKING:
    from sage_prefect.inference.client import UnifiedInferenceClient


def gateway_client(
    context: OperatorContext, *, timeout_s: float, **options: Any
) -> UnifiedInferenceClient:
    """A client that names band, tenant and deadline of the run in each call.

    Args:
        options: of ``UnifiedInferenceClient.create``.

    Raises:
        EngineUnavailable: no gateway is found.
    """
    from sage_prefect.inference.client import UnifiedInferenceClient
    from sage_prefect.inference.protocol import CallContext

    urgency = CallContext(band=context.band, tenant=context.tenant, deadline_ms=context.deadline_ms)
    return UnifiedInferenceClient.create(timeout_s=timeout_s, context=urgency, **options)


def blames_input(error: RequestRejected) -> bool:
    """Whether the text itself was refused (400, 413, 422), not the key, the model or the route."""
    return error.status in (400, 413, 422)
