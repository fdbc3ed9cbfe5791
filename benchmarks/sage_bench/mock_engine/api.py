"""The OpenAI protocol as vLLM serves it: requests read, mistakes refused in its shape. Pure.

Texts have one token per word (white space between), so that a client can plan exact lengths.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Kind = Literal["chat", "completion", "embedding"]

KINDS: dict[bytes, Kind] = {
    b"/v1/chat/completions": "chat",
    b"/v1/completions": "completion",
    b"/v1/embeddings": "embedding",
}


OUTPUT_FIELD = "mock_output_tokens"
"""Body field of our own: the length that the answer turns out to have. Unlike ``max_tokens`` no
gateway can read it, so that a live run knows as little as a simulated one."""


class Refusal(Exception):  # noqa: N818 - an answer
    """The request is answered with an error."""

    def __init__(self, status: int, message: str, *, code: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def body(self) -> bytes:
        """The error as vLLM writes it."""
        error = {"message": self.message, "type": self.code, "param": None, "code": self.status}
        return orjson.dumps({"error": error})


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine serves.

    ``mean_output`` is the mean length of an answer that is not told its length exactly.
    """

    models: tuple[str, ...]
    max_model_len: int = 131_072
    priorities: bool = False
    """A priority other than 0 is allowed (vLLM: only under ``--scheduling-policy priority``)."""
    mean_output: int = 128
    dimensions: int = 8
    """Of the vectors."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request that can be served; lengths are tokens."""

    kind: Kind
    model: str
    prompt: int
    output: int
    finish_reason: str
    stream: bool
    include_usage: bool
    priority: int
    chain: tuple[int, ...]
    """A hash per full block of the prompt, each covering all before it."""
    inputs: tuple[int, ...] = ()
    """Tokens of each text to embed."""
    base64: bool = False
    """Vectors as base64 of little-endian float32."""


def read_job(kind: Kind, body: bytes, priority: bytes | None, limits: Limits, block: int) -> Job:
    """Read a request.

    Args:
        priority: the header ``X-Vllm-Priority``, which goes before the body's field.
        block: tokens per hash of the chain.

    Raises:
        Refusal: with vLLM's status (400, 404).
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Refusal(400, "the body is no JSON object")
    model = content.get("model")
    if model not in limits.models:
        raise Refusal(404, f"The model `{model}` does not exist.", code="NotFoundError")
    level = _priority(content, priority, limits)
    if kind == "embedding":
        inputs = _inputs(content.get("input"), limits)
        encoding = content.get("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise Refusal(400, f"encoding_format {encoding!r} must be float or base64.")
        encoded = encoding == "base64"
        return Job(kind, model, sum(inputs), 0, "", False, False, level, (), inputs, encoded)
    if content.get("n", 1) != 1:
        raise Refusal(400, f"n={content['n']!r}: this engine gives one choice.")
    words = _prompt(kind, content)
    output, finish = _output(content, words, limits)
    stream = content.get("stream") is True
    options = content.get("stream_options") or {}
    if options and not stream:
        raise Refusal(400, "stream_options can only be set with stream.")
    include = isinstance(options, dict) and options.get("include_usage") is True
    chain = _chain(words, block)
    return Job(kind, model, len(words), output, finish, stream, include, level, chain)


def _priority(content: dict[str, Any], header: bytes | None, limits: Limits) -> int:
    given = content.get("priority", 0) if header is None else header
    try:
        level = int(given)
    except (TypeError, ValueError):
        raise Refusal(400, f"priority {given!r} is no whole number.") from None
    if level and not limits.priorities:
        raise Refusal(400, "Got priority but priority scheduling is not enabled.")
    return level


def _prompt(kind: Kind, content: dict[str, Any]) -> list[str]:
    if kind == "completion":
        prompt = content.get("prompt")
        if isinstance(prompt, str):
            words = prompt.split()
        elif isinstance(prompt, list) and _are_token_ids(prompt):
            words = [str(token) for token in prompt]
        else:
            raise Refusal(400, "prompt must be a string or a list of token ids.")
    else:
        messages = content.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refusal(400, "messages must be a list with at least one message.")
        words = [word for message in messages for word in _text(message).split()]
    if not words:
        raise Refusal(400, "the prompt is empty.")
    return words


def _text(message: Any) -> str:
    text = message.get("content") if isinstance(message, dict) else None
    if isinstance(text, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in text
    ):
        return " ".join(part["text"] for part in text)
    if not isinstance(text, str):
        raise Refusal(400, "each message needs a string, or parts with text, as content.")
    return text


def _are_token_ids(values: list[Any]) -> bool:
    return bool(values) and all(type(token) is int for token in values)


def _output(content: dict[str, Any], words: list[str], limits: Limits) -> tuple[int, str]:
    """Tokens that the answer will have and why it ends there."""
    room = limits.max_model_len - len(words)
    wanted = content.get("max_completion_tokens", content.get("max_tokens"))
    if wanted is not None and (type(wanted) is not int or wanted < 1):
        raise Refusal(400, f"max_tokens must be at least 1, got {wanted!r}.")
    if room < 1 or (wanted or 0) > room:
        raise Refusal(
            400,
            f"This model's maximum context length is {limits.max_model_len} tokens; the prompt "
            f"has {len(words)} and max_tokens is {wanted}.",
        )
    most = wanted if wanted is not None else room
    planned = content.get(OUTPUT_FIELD)
    if planned is not None:
        if type(planned) is not int or planned < 1:
            raise Refusal(400, f"{OUTPUT_FIELD} must be at least 1, got {planned!r}.")
        return (planned, "stop") if planned <= most else (most, "length")
    if content.get("ignore_eos") is True:
        return most, "length"
    # Equal prompts get equal answers: a length that depends on nothing but the text.
    chance = zlib.crc32(" ".join(words).encode()) / 0xFFFFFFFF
    natural = 1 + round(2 * limits.mean_output * chance)
    return (natural, "stop") if natural < most else (most, "length")


def _inputs(given: Any, limits: Limits) -> tuple[int, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise Refusal(400, "input must be a text, or a list of texts or of lists of token ids.")
    lengths = []
    for text in [texts] if _are_token_ids(texts) else texts:
        if isinstance(text, str):
            lengths.append(max(1, len(text.split())))
        elif isinstance(text, list) and _are_token_ids(text):
            lengths.append(len(text))
        else:
            raise Refusal(400, f"input {len(lengths)} is neither a text nor a list of token ids.")
    if max(lengths) > limits.max_model_len:
        raise Refusal(400, f"an input of {max(lengths)} tokens is above {limits.max_model_len}.")
    return tuple(lengths)


def _chain(words: list[str], block: int) -> tuple[int, ...]:
    chain = []
    before = 0
    for start in range(0, len(words) - block + 1, block):
        before = hash((before, " ".join(words[start : start + block])))
        chain.append(before)
    return tuple(chain)
