"""What the scheduler needs to know of a request, from its route, headers and body.

No tokenizer runs: lengths are estimated from bytes and from what engines report in ``usage``. The
cost does not grow with the prompt beyond its first 16 KB, nor with the number of tenants or models;
it does grow with the number of inputs of an embedding call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sage_prefect.common.errors import RequestRejected
from sage_prefect.control_plane.embedding_inputs import measure_inputs, merge_key
from sage_prefect.control_plane.event_bounds import MAX_TOKENS
from sage_prefect.control_plane.events import Band, Kind, RequestInfo
from sage_prefect.control_plane.length_estimates import BytesPerToken, OutputLengths
from sage_prefect.control_plane.priority_conventions import wanted_band
from sage_prefect.control_plane.prompt_length import prompt_length
from sage_prefect.control_plane.prompt_prefix import prefix_hashes

# A small embedding call has a user waiting for it (a query); a big one is ingestion.
_QUERY_INPUTS = 4
_QUERY_TOKENS = 1024
_SHORT_ANSWER_TOKENS = 256
_MAX_HEADER_MS = 24 * 3600 * 1000
_MAX_ANSWERS = 16_384  # vLLM's own limit of ``n``
_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Entitlement:
    """Whose request it is and how urgent it may claim to be."""

    tenant: str = "default"
    highest: Band = Band.CRITICAL
    """No request of this tenant goes into a more urgent band."""


class RequestClassifier:
    """Turns checked requests into :class:`RequestInfo`; learns lengths from answers.

    Args:
        prefixes: whether prompts are hashed (``RequestInfo.prefix``), for policies that look for
            engines with a cached prefix.
    """

    def __init__(self, *, prefixes: bool = True) -> None:
        self._prefixes = prefixes
        self._bytes_per_token = BytesPerToken()
        self._outputs = OutputLengths()

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
        objective: str | None = None,
        deadline_ms: str | None = None,
        session: str | None = None,
        ttft_slo_ms: str | None = None,
        tpot_slo_ms: str | None = None,
    ) -> RequestInfo:
        """Classify one request.

        Args:
            body: the parsed JSON object; ``model`` is a non-empty string.
            body_bytes: length of the body as sent.
            now: the driver's clock in seconds, for the deadline.
            band: value of ``x-sage-band``. This and every other wish (see
                :mod:`~sage_prefect.control_plane.priority_conventions`) ends at the entitlement.
            objective: value of ``x-llm-d-inference-objective``.
            deadline_ms: value of ``x-sage-deadline-ms``, from now.
            session: value of ``x-session-id``.
            ttft_slo_ms, tpot_slo_ms: values of ``x-slo-ttft-ms`` and ``x-slo-tpot-ms``: wished time
                to the first token, and per token after it.

        Raises:
            RequestRejected: a header or ``priority`` makes no sense (status 400, names it).
        """
        model: str = body["model"]
        tenant = entitlement.tenant
        stream = body.get("stream") is True
        tokens = prompt_length(body, body_bytes, self._bytes_per_token[model])
        max_tokens = _output_limit(body)
        inputs: tuple[int, ...] = ()
        input_keys: tuple[int, ...] = ()
        form: int | None = None
        prefix: tuple[int, ...] = ()
        output: int | None = None
        answers = 1
        if kind == "embedding" or kind == "rerank":
            inputs, input_keys = measure_inputs(kind, body, tokens)
            form = merge_key(kind, body, inputs)
            if inputs:
                tokens = sum(inputs)
            small = len(inputs) <= _QUERY_INPUTS and tokens <= _QUERY_TOKENS
            default = Band.INTERACTIVE if small else Band.BATCH
        else:
            output = self._outputs.estimate(tenant, model)
            if max_tokens is not None and max_tokens < output:
                output = max_tokens
            if "n" in body or "prompt" in body:
                answers = _answers(body)
                output = min(MAX_TOKENS, output * answers)
            if self._prefixes:
                prefix = prefix_hashes(model, body)
            short = max_tokens is not None and max_tokens <= _SHORT_ANSWER_TOKENS
            default = Band.INTERACTIVE if stream or short else Band.STANDARD
        wanted = wanted_band(body, default, band=band, objective=objective)
        return RequestInfo(
            request_id,
            model,
            kind,
            tenant,
            wanted if wanted > entitlement.highest else entitlement.highest,
            stream,
            body_bytes,
            tokens,
            max_tokens,
            None if deadline_ms is None else now + _seconds("x-sage-deadline-ms", deadline_ms),
            session,
            None if ttft_slo_ms is None else _seconds("x-slo-ttft-ms", ttft_slo_ms),
            None if tpot_slo_ms is None else _seconds("x-slo-tpot-ms", tpot_slo_ms),
            output,
            prefix,
            inputs,
            input_keys,
            form,
            answers if answers > 1 else None,
        )

    def learn(
        self, info: RequestInfo, prompt_tokens: int | None, output_tokens: int | None
    ) -> None:
        """Take in an engine's ``usage`` for a request that was classified here.

        Args:
            prompt_tokens, output_tokens: as reported; None: not said.
        """
        if prompt_tokens and not self._has_attachments(info):
            self._bytes_per_token.learn(info.model, info.body_bytes, prompt_tokens)
        if output_tokens and info.output_estimate is not None:
            each = round(output_tokens / (info.answers or 1))
            self._outputs.learn(info.tenant, info.model, each)

    def _has_attachments(self, info: RequestInfo) -> bool:
        """Whether most of its bytes are no text: then they teach nothing of text."""
        text_bytes = info.prompt_tokens * self._bytes_per_token[info.model]
        return info.body_bytes > 1024 and info.body_bytes > 2.0 * text_bytes


def _output_limit(body: Mapping[str, Any]) -> int | None:
    """The longest answer that the client takes; None: not said, or absurd."""
    for name in _OUTPUT_LIMITS:
        if name in body and (limit := body[name]) is not None:
            if not isinstance(limit, int) or isinstance(limit, bool):
                return None
            return limit if 1 <= limit <= MAX_TOKENS else None
    return None


def _answers(body: Mapping[str, Any]) -> int:
    """How many answers the client wants: ``n`` for each prompt of the call."""
    n = body.get("n")
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= _MAX_ANSWERS:
        n = 1
    prompts = body.get("prompt")
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        n *= len(prompts)
    return min(n, _MAX_ANSWERS)


def _seconds(header: str, value: str) -> float:
    text = value.strip()
    whole = text.isascii() and text.isdigit() and len(text) <= 10
    if not whole or not 1 <= int(text) <= _MAX_HEADER_MS:
        raise RequestRejected(
            f"Header {header} has the value {value[:40]!r}; it must be a whole number of "
            f"milliseconds from 1 to {_MAX_HEADER_MS}.",
            status=400,
            code="invalid_header",
        )
    return int(text) / 1000.0
