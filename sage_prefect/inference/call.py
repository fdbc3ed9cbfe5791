"""One call as both clients send it: request, time limits, retries. Pure but for the clock."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

import httpx

from sage_prefect.common.errors import (
    EngineError,
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
)
from sage_prefect.inference import faults
from sage_prefect.inference.config import ClientConfig, is_loopback
from sage_prefect.inference.protocol import CallContext
from sage_prefect.inference.retry import RetryBudget, RetryPlan


class Call:
    """A request, what it may take, and what to do when an attempt fails.

    Args:
        path: below the base URL, for example ``/chat/completions``.
        body: JSON, or None for a GET.
        context: of this call; its headers win over the client's.
    """

    def __init__(
        self,
        config: ClientConfig,
        budget: RetryBudget,
        path: str,
        body: bytes | None,
        context: CallContext | None,
    ) -> None:
        context = context or CallContext()
        self.method = "GET" if body is None else "POST"
        self.url = config.base_url + path
        self.body = body
        self.headers = config.context.as_headers() | context.as_headers()
        self.request_id = self.headers.setdefault("x-request-id", uuid.uuid4().hex)
        self.timeout_s = context.timeout_s or config.context.timeout_s or config.timeout_s
        self._first_byte_timeout_s = config.first_byte_timeout_s
        self._connect_timeout_s = config.connect_timeout_s
        self._started = time.monotonic()
        self._deadline = self._started + self.timeout_s
        self._plan = RetryPlan(config.retries, budget, self._deadline)

    @property
    def elapsed_ms(self) -> float:
        """Since the call began, in milliseconds."""
        return (time.monotonic() - self._started) * 1e3

    @property
    def remaining_s(self) -> float:
        """Of the total time; not below a millisecond (httpx takes no zero)."""
        return max(1e-3, self._deadline - time.monotonic())

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The next attempt's request, with time limits that fit into what is left."""
        remaining = self.remaining_s
        timeout = httpx.Timeout(
            min(self._first_byte_timeout_s or remaining, remaining),
            connect=min(self._connect_timeout_s, remaining),
            pool=remaining,
        )
        headers = self.headers
        if self._plan.made:
            headers = headers | {"x-sage-attempt": str(self._plan.made)}
        return client.build_request(
            self.method, self.url, content=self.body, headers=headers, timeout=timeout
        )

    def check_deadline(self) -> None:
        """Raises EngineTimeout when the total time is over."""
        if time.monotonic() >= self._deadline:
            raise faults.timed_out(self.url, self.timeout_s)

    def failed(self, error: httpx.HTTPError | httpx.InvalidURL) -> EngineError:
        """The error of ours for a failed attempt."""
        return faults.from_transport(error, self.url, self.elapsed_ms / 1e3)

    def retry_delay(
        self, error: EngineError, cause: BaseException | None, headers: Mapping[str, str]
    ) -> float | None:
        """Seconds until the next attempt, or None: raise ``error``.

        An attempt that timed out while the engine worked is not repeated: the engine may still be
        at it, and a second copy would take what time is left from both.
        """
        if isinstance(error, EngineTimeout):
            repeatable = isinstance(cause, httpx.ConnectTimeout)
        else:
            repeatable = isinstance(error, (EngineUnavailable, EngineOverloaded))
        if not repeatable:
            return None
        return self._plan.delay_after_failure(faults.retry_after_s(headers))


def default_headers(config: ClientConfig) -> dict[str, str]:
    """Headers that every request of a client carries."""
    headers = {"user-agent": "sage-prefect", "content-type": "application/json"}
    if config.api_key:
        headers["authorization"] = f"Bearer {config.api_key}"
    return headers


def pool_limits(config: ClientConfig) -> httpx.Limits:
    """Bounds of the connection pool."""
    return httpx.Limits(
        max_connections=config.max_connections,
        max_keepalive_connections=config.max_connections,
        # Shorter than servers keep idle connections (uvicorn: 5 s), else the server closes one just
        # as we use it.
        keepalive_expiry=4.0,
    )


def uses_environment_proxies(config: ClientConfig) -> bool:
    """A proxy from the environment must not see calls to this machine."""
    return not is_loopback(config.base_url)
