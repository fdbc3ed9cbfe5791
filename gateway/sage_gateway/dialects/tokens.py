"""``/tokenize`` and ``/detokenize`` in vLLM's shape, and llama.cpp's routes of the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from sage_gateway.dialects.base import (
    Dialect,
    MalformedAnswer,
    NotTranslatable,
    Stamp,
    StreamRelay,
)
from sage_gateway.dialects.fields import invalid, items, text
from sage_gateway.dialects.scheduled import short_work

_LLAMACPP = "llamacpp"


class _WholeOnly:
    is_chat = False
    body: dict[str, Any]

    def stream(self) -> StreamRelay:
        """There are no streams of tokens' numbers."""
        raise NotImplementedError


class LlamacppTokenize(_WholeOnly):
    """``content`` in, ``tokens`` out."""

    path = "/tokenize"

    def __init__(self, body: Mapping[str, Any]) -> None:
        if "messages" in body:
            raise NotTranslatable(
                "messages", "its /tokenize takes plain text (prompt), no conversation."
            )
        special = body.get("add_special_tokens")
        self.body = {
            "model": body["model"],
            "content": text(body.get("prompt"), "prompt"),
            "add_special": True if special is None else special,
            "with_pieces": body.get("return_token_strs") is True,
        }

    def whole(self, answer: bytes) -> bytes:
        """vLLM's answer; ``max_model_len`` is null, because llama.cpp does not say it here."""
        tokens = _field(answer, "tokens", list)
        strings = None
        if self.body["with_pieces"]:
            pairs = [(token.get("id"), token.get("piece")) for token in tokens]
            # A piece that is no UTF-8 by itself comes as its bytes.
            strings = [
                bytes(piece).decode("utf-8", "replace") if isinstance(piece, list) else piece
                for _, piece in pairs
            ]
            tokens = [number for number, _ in pairs]
        content = {"count": len(tokens), "max_model_len": None, "tokens": tokens}
        return orjson.dumps({**content, "token_strs": strings})


class LlamacppDetokenize(_WholeOnly):
    """``tokens`` in, ``content`` out."""

    path = "/detokenize"

    def __init__(self, body: Mapping[str, Any]) -> None:
        tokens = items(body.get("tokens"), "tokens")
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
            raise invalid("tokens", "a list of whole numbers")
        self.body = {"model": body["model"], "tokens": tokens}

    def whole(self, answer: bytes) -> bytes:
        """vLLM's answer."""
        return orjson.dumps({"prompt": _field(answer, "content", str)})


class TokenizeDialect(Dialect):
    """``/tokenize``."""

    counts_in_stream = False

    def scheduled(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The text, and no answer."""
        read = {name: body[name] for name in ("prompt", "messages", "tools") if name in body}
        return short_work(body, **read)

    def translate(
        self, body: Mapping[str, Any], driver: str, stamp: Stamp
    ) -> LlamacppTokenize | None:
        """For llama.cpp."""
        return LlamacppTokenize(body) if driver == _LLAMACPP else None


class DetokenizeDialect(Dialect):
    """``/detokenize``."""

    counts_in_stream = False

    def scheduled(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tokens, and no answer."""
        return short_work(body, prompt=body["tokens"])

    def translate(
        self, body: Mapping[str, Any], driver: str, stamp: Stamp
    ) -> LlamacppDetokenize | None:
        """For llama.cpp."""
        return LlamacppDetokenize(body) if driver == _LLAMACPP else None


def _field(answer: bytes, name: str, kind: type) -> Any:
    try:
        value = orjson.loads(answer).get(name)
    except (orjson.JSONDecodeError, AttributeError):
        value = None
    if not isinstance(value, kind):
        raise MalformedAnswer(f"sent an answer without {name!r}")
    return value
