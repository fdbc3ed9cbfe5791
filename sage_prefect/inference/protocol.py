"""The OpenAI protocol as SAGE speaks it: typed results, request bodies, response parsing. Pure.

Both clients (sync and async) are thin I/O around these functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from sage_prefect.common.errors import EngineUnavailable

Messages = str | Sequence[Mapping[str, Any]]
"""A user's question, or messages in OpenAI's shape: ``{"role": ..., "content": ...}``."""


@dataclass(frozen=True)
class Usage:
    """Tokens of a request; zero where the engine did not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class ChatResult:
    """A finished answer.

    Attributes:
        text: of the first choice; empty when the model only called tools.
        model: the name that the server reports.
        finish_reason: ``"stop"``, ``"length"``, ``"tool_calls"``...; None where it did not say.
        usage: tokens.
        engine: the engine that answered (header ``x-sage-engine``), or None.
        latency_ms: from sending the request to the last byte, retries included.
        ttft_ms: from sending to the first text; None for an answer that was not streamed.
        queue_ms: time that the request waited in the gateway (``x-sage-queue-ms``), or None.
        request_id: of this call (``x-request-id``).
        raw: the whole response as parsed JSON (tool calls, further choices, logprobs); empty for a
            streamed answer.
    """

    text: str
    model: str
    finish_reason: str | None
    usage: Usage = Usage()
    engine: str | None = None
    latency_ms: float = 0.0
    ttft_ms: float | None = None
    queue_ms: float | None = None
    request_id: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ChatChunk:
    """One frame of a streamed answer.

    Attributes:
        text: what this frame adds; may be empty (role, tool calls, usage, end).
        finish_reason: set on the last frame of a choice.
        usage: set on the frame that reports it.
        index: the choice that it belongs to.
        raw: the frame as parsed JSON.
    """

    text: str = ""
    model: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    index: int = 0
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class CallContext:
    """What waits for a call: how urgent it is and for whom. Travels as headers.

    Attributes:
        band: ``critical``, ``interactive``, ``standard`` or ``batch``.
        tenant: on whose behalf; the key needs the right to delegate.
        deadline_ms: time until the answer is of no use any more, in milliseconds.
        ttft_slo_ms: wish for the time to the first token.
        tpot_slo_ms: wish for the time per further token.
        session_id: keeps a conversation on one engine where that helps.
        request_id: for logs; made up when None.
        timeout_s: bound on this call, in place of the client's.
        headers: sent as they are.
    """

    band: str | None = None
    tenant: str | None = None
    deadline_ms: float | None = None
    ttft_slo_ms: float | None = None
    tpot_slo_ms: float | None = None
    session_id: str | None = None
    request_id: str | None = None
    timeout_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.as_headers().items():
            if not is_header_value(value):
                raise ValueError(
                    f"{name}: {value!r} cannot be sent as a header: it takes printable ASCII."
                )

    def as_headers(self) -> dict[str, str]:
        """The headers that are set."""
        values = {
            "x-sage-band": self.band,
            "x-sage-tenant": self.tenant,
            "x-sage-deadline-ms": _number(self.deadline_ms),
            "x-slo-ttft-ms": _number(self.ttft_slo_ms),
            "x-slo-tpot-ms": _number(self.tpot_slo_ms),
            "x-session-id": self.session_id,
            "x-request-id": self.request_id,
        }
        return {name: value for name, value in values.items() if value is not None} | dict(
            self.headers
        )


# -- requests -----------------------------------------------------------------------------


def chat_body(messages: Messages, model: str, **parameters: Any) -> bytes:
    """Body of ``/v1/chat/completions``. A parameter that is None is left out; 0 is not None."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return json_body({"model": model, "messages": list(messages)}, parameters)


def completion_body(prompt: str, model: str, **parameters: Any) -> bytes:
    """Body of ``/v1/completions``."""
    return json_body({"model": model, "prompt": prompt}, parameters)


def json_body(fixed: dict[str, Any], parameters: Mapping[str, Any]) -> bytes:
    """A JSON object: the fixed fields and the parameters that are not None.

    Raises:
        TypeError: a value cannot be written as JSON.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    try:
        return orjson.dumps(fixed | given, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise TypeError(f"the request cannot be written as JSON: {error}") from error


# -- responses ----------------------------------------------------------------------------


def parse_json(content: bytes, what: str) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        EngineUnavailable: it is none.
    """
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise malformed(what, content)
    return value


def malformed(what: str, content: object) -> EngineUnavailable:
    """The error for an answer that does not follow the protocol."""
    text = content.decode(errors="replace") if isinstance(content, bytes) else repr(content)
    return EngineUnavailable(
        f"the engine's answer is no {what}: {text[:200]!r}.",
        hint="Is the URL that of an OpenAI-compatible server?",
    )


def parse_usage(value: object) -> Usage:
    """Usage from its JSON object; what is missing counts as zero."""
    if not isinstance(value, Mapping):
        return Usage()
    return Usage(
        int(value.get("prompt_tokens") or 0),
        int(value.get("completion_tokens") or 0),
    )


def parse_answer(
    content: bytes, *, headers: Mapping[str, str], latency_ms: float, request_id: str | None
) -> ChatResult:
    """A :class:`ChatResult` from the body of a chat or completions answer.

    Raises:
        EngineUnavailable: the body does not follow the protocol.
    """
    body = parse_json(content, "chat completion")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise malformed("chat completion", content)
    return ChatResult(
        text=_text_of(choices[0], "message"),
        model=str(body.get("model") or ""),
        finish_reason=choices[0].get("finish_reason"),
        usage=parse_usage(body.get("usage")),
        engine=headers.get("x-sage-engine"),
        latency_ms=latency_ms,
        queue_ms=parse_number(headers.get("x-sage-queue-ms")),
        request_id=headers.get("x-request-id") or request_id,
        raw=body,
    )


def parse_chunk(data: str) -> list[ChatChunk]:
    """The chunks of one SSE data frame: one per choice, or one with usage alone.

    Raises:
        EngineUnavailable: the frame does not follow the protocol.
    """
    body = parse_json(data.encode(), "chat completion chunk")
    model = str(body.get("model") or "")
    usage = parse_usage(body["usage"]) if body.get("usage") else None
    choices = body.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(item, Mapping) for item in choices):
        raise malformed("chat completion chunk", data.encode())
    if not choices:
        return [ChatChunk(model=model, usage=usage, raw=body)]
    return [
        ChatChunk(
            text=_text_of(choice, "delta"),
            model=model,
            finish_reason=choice.get("finish_reason"),
            usage=usage,
            index=int(choice.get("index") or 0),
            raw=body,
        )
        for choice in choices
    ]


def parse_models(content: bytes) -> list[str]:
    """Model names from the answer of ``/v1/models``."""
    data = parse_json(content, "list of models").get("data")
    if not isinstance(data, list):
        raise malformed("list of models", content)
    return [str(item["id"]) for item in data if isinstance(item, Mapping) and "id" in item]


def _text_of(choice: Mapping[str, Any], key: str) -> str:
    """Text of a choice: chat has it in ``message`` or ``delta``, completions in ``text``."""
    inner = choice.get(key)
    value = inner.get("content") if isinstance(inner, Mapping) else choice.get("text")
    if isinstance(value, list):  # content parts
        return "".join(str(part.get("text", "")) for part in value if isinstance(part, Mapping))
    return value if isinstance(value, str) else ""


def parse_number(value: str | None) -> float | None:
    """A number from a header, None where it holds none."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def is_header_value(value: str) -> bool:
    """Whether every server takes this as the value of a header."""
    return value.isascii() and value.isprintable()


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}".rstrip("0").rstrip(".")
