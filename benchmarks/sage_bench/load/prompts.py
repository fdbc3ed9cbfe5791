"""Synthetic requests of a wanted size.

Texts are words of three letters: one word is four bytes with its blank and one token to the mock
engines (and within 10 % of one for English tokenizers of some 100,000 entries).
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from sage_bench.load.request import Kind, LoadRequest
from sage_prefect.common.errors import BenchmarkError

WORD_BYTES = 4
_TEXT_WORDS = 1 << 16


class Words:
    """Cuts prompts out of one long random text: cheap, and no two begin alike by chance.

    Args:
        seed: of the text.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = random.Random(seed)
        letters = rng.choices(string.ascii_lowercase, k=3 * _TEXT_WORDS)
        self._text = " ".join(
            "".join(letters[i : i + 3]) for i in range(0, len(letters), 3)
        )  # _TEXT_WORDS words

    def cut(self, words: int, rng: random.Random) -> str:
        """``words`` consecutive words from a random place."""
        parts = []
        while words > 0:
            piece = min(words, _TEXT_WORDS)
            start = rng.randrange(_TEXT_WORDS - piece + 1) * WORD_BYTES
            parts.append(self._text[start : start + piece * WORD_BYTES - 1])
            words -= piece
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What the requests of a synthetic load look like.

    Raises:
        BenchmarkError: a size makes no sense.
    """

    model: str
    kind: Kind = "chat"
    prompt_tokens: int = 256
    """Words; for embeddings per input."""
    output_tokens: int = 64
    """Exactly so many, where the engine honours ``ignore_eos`` (vLLM and the mock engines do)."""
    prefix_tokens: int = 0
    """So many words at the beginning are the same in all requests."""
    inputs: int = 1
    """Texts per embedding request."""
    stream: bool = True
    tenant: str = ""
    """Sent as ``x-sage-tenant`` when given."""
    band: str = ""
    """Sent as ``x-sage-band`` when given."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1 or self.inputs < 1:
            raise BenchmarkError(
                f"a request of {self.inputs} inputs, {self.prompt_tokens} prompt and "
                f"{self.output_tokens} output tokens; each must be at least 1."
            )
        if not 0 <= self.prefix_tokens <= self.prompt_tokens:
            raise BenchmarkError(
                f"a shared prefix of {self.prefix_tokens} tokens in a prompt of "
                f"{self.prompt_tokens}."
            )

    def requests(self, seed: int) -> Iterator[LoadRequest]:
        """An endless sequence; equal seeds give equal requests."""
        words, rng = Words(seed), random.Random(seed)
        prefix = words.cut(self.prefix_tokens, random.Random(0)) if self.prefix_tokens else ""
        while True:
            yield self._request(words, rng, prefix)

    def _request(self, words: Words, rng: random.Random, prefix: str) -> LoadRequest:
        headers = []
        if self.tenant:
            headers.append(("x-sage-tenant", self.tenant))
        if self.band:
            headers.append(("x-sage-band", self.band))
        own = self.prompt_tokens - self.prefix_tokens
        texts = [
            " ".join(part for part in (prefix, words.cut(own, rng)) if part)
            for _ in range(self.inputs if self.kind == "embedding" else 1)
        ]
        stream = self.stream and self.kind != "embedding"
        return LoadRequest(
            kind=self.kind,
            body=orjson.dumps(self._body(texts, stream)),
            stream=stream,
            tenant=self.tenant,
            band=self.band,
            prompt_tokens=self.prompt_tokens * len(texts),
            output_tokens=0 if self.kind == "embedding" else self.output_tokens,
            inputs=len(texts) if self.kind == "embedding" else 0,
            headers=tuple(headers),
        )

    def _body(self, texts: list[str], stream: bool) -> dict[str, Any]:
        if self.kind == "embedding":
            return {"model": self.model, "input": texts}
        body: dict[str, Any] = {"model": self.model}
        if self.kind == "chat":
            body["messages"] = [{"role": "user", "content": texts[0]}]
        else:
            body["prompt"] = texts[0]
        body |= {"max_tokens": self.output_tokens, "ignore_eos": True, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        return body
