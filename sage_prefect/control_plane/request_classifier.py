"""What the scheduler needs to know of a request, from its route, headers and body, in O(1).

No tokenizer runs: the prompt's length is estimated from the body's bytes, with a ratio per model
that is learned from the ``usage`` that engines report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sage_prefect.common.errors import RequestRejected
from sage_prefect.control_plane.events import Band, Kind, RequestInfo

_BANDS = {band.label: band for band in Band}
_FIRST_GUESS_BYTES_PER_TOKEN = 4.0
_LEARNING_RATE = 0.1
_MAX_LEARNED_MODELS = 1024

# A small embedding call has a user waiting for it (a query); a big one is ingestion.
_QUERY_INPUTS = 4
_QUERY_TOKENS = 1024
_SHORT_ANSWER_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Entitlement:
    """Whose request it is and how urgent it may claim to be."""

    tenant: str = "default"
    highest: Band = Band.CRITICAL
    """No request of this tenant goes into a more urgent band."""


class RequestClassifier:
    """Turns checked requests into :class:`RequestInfo`; learns bytes per token by model."""

    def __init__(self) -> None:
        self._bytes_per_token: dict[str, float] = {}

    def classify(
        self,
        *,
        request_id: str,
        kind: Kind,
        body: Mapping[str, Any],
        body_bytes: int,
        now: float,
        entitlement: Entitlement,
        band: str | None = None,
        deadline_ms: str | None = None,
        session: str | None = None,
        ttft_slo_ms: str | None = None,
        tpot_slo_ms: str | None = None,
    ) -> RequestInfo:
        """Classify one request.

        Args:
            body: the parsed JSON object; ``model`` is a non-empty string.
            body_bytes: length of the body as sent.
            now: the driver's clock, for the deadline.
            band: value of ``x-sage-band``; lowers the band, never raises it above entitlement.
            deadline_ms: value of ``x-sage-deadline-ms``, from now.
            ttft_slo_ms, tpot_slo_ms: values of ``x-slo-ttft-ms`` and ``x-slo-tpot-ms``: wished time
                to the first token, and per token after it.

        Raises:
            RequestRejected: a header's value makes no sense (status 400, names the header).
        """
        model: str = body["model"]
        stream = body.get("stream") is True
        tokens = int(body_bytes / self._bytes_per_token.get(model, _FIRST_GUESS_BYTES_PER_TOKEN))
        max_tokens = body.get("max_completion_tokens", body.get("max_tokens"))
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
            max_tokens = None
        if band is None:
            wanted = _default_band(kind, body, tokens, stream, max_tokens)
        else:
            wanted = _parse_band(band)
        deadline = None
        if deadline_ms is not None:
            deadline = now + _parse_milliseconds("x-sage-deadline-ms", deadline_ms) / 1000.0
        return RequestInfo(
            request_id,
            model,
            kind,
            entitlement.tenant,
            max(wanted, entitlement.highest),
            stream,
            body_bytes,
            tokens,
            max_tokens,
            deadline,
            session,
            _seconds("x-slo-ttft-ms", ttft_slo_ms),
            _seconds("x-slo-tpot-ms", tpot_slo_ms),
        )

    def learn(self, model: str, body_bytes: int, prompt_tokens: int) -> None:
        """Take an engine's ``usage.prompt_tokens`` into the model's bytes per token."""
        if prompt_tokens < 1 or body_bytes < 1:
            return
        known = self._bytes_per_token.get(model)
        if known is None:
            if len(self._bytes_per_token) >= _MAX_LEARNED_MODELS:
                return
            known = _FIRST_GUESS_BYTES_PER_TOKEN
        seen = min(64.0, max(0.25, body_bytes / prompt_tokens))
        self._bytes_per_token[model] = known + _LEARNING_RATE * (seen - known)


def _default_band(
    kind: Kind, body: Mapping[str, Any], tokens: int, stream: bool, max_tokens: int | None
) -> Band:
    if kind == "embedding":
        inputs = body.get("input")
        count = len(inputs) if isinstance(inputs, list) else 1
        small = count <= _QUERY_INPUTS and tokens <= _QUERY_TOKENS
        return Band.INTERACTIVE if small else Band.BATCH
    if body.get("service_tier") in ("flex", "batch"):
        return Band.BATCH
    if stream or (max_tokens is not None and max_tokens <= _SHORT_ANSWER_TOKENS):
        return Band.INTERACTIVE
    return Band.STANDARD


def _parse_band(value: str) -> Band:
    band = _BANDS.get(value.strip().lower())
    if band is None:
        raise RequestRejected(
            f"Header x-sage-band has the value {value[:40]!r}; known bands: {', '.join(_BANDS)}.",
            status=400,
            code="invalid_header",
        )
    return band


def _seconds(header: str, value: str | None) -> float | None:
    return None if value is None else _parse_milliseconds(header, value) / 1000.0


def _parse_milliseconds(header: str, value: str) -> int:
    text = value.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) < 1:
        raise RequestRejected(
            f"Header {header} has the value {value[:40]!r}; it must be a whole number of "
            "milliseconds above 0.",
            status=400,
            code="invalid_header",
        )
    return int(text)
