"""Answers in OpenAI's shape as vLLM writes them. Pure: bytes from jobs."""

from __future__ import annotations

import base64
import struct
import time
import zlib
from typing import Any

import orjson

from sage_bench.mock_engine.api import Job

_WORDS = (
    b" the",
    b" cat",
    b" sat",
    b" on",
    b" a",
    b" mat",
    b" and",
    b" saw",
    b" how",
    b" far",
    b" it",
)
DONE = b"data: [DONE]\n\n"


class Answer:
    """What one job gets back.

    Args:
        job: the job.
        answer_id: without its prefix.
        created: Unix seconds.
    """

    __slots__ = ("_after", "_before", "_head", "_seed", "job")

    def __init__(self, job: Job, answer_id: str, created: float | None = None) -> None:
        self.job = job
        prefix, name = ("chatcmpl", "chat.completion") if job.kind == "chat" else (
            "cmpl", "text_completion"
        )  # fmt: skip
        self._head: dict[str, Any] = {
            "id": f"{prefix}-{answer_id}",
            "object": name,
            "created": int(time.time() if created is None else created),
            "model": job.model,
        }
        self._seed = zlib.crc32(answer_id.encode())
        chunk = dict(self._head)
        if job.kind == "chat":
            chunk["object"] = "chat.completion.chunk"
        lead = orjson.dumps(chunk)[:-1]
        if job.kind == "chat":
            self._before = b'data: %b,"choices":[{"index":0,"delta":{"content":"' % lead
            self._after = b'"},"logprobs":null,"finish_reason":null}]}\n\n'
        else:
            self._before = b'data: %b,"choices":[{"index":0,"text":"' % lead
            self._after = b'","logprobs":null,"finish_reason":null}]}\n\n'

    def first_event(self) -> bytes:
        """What comes before the first token (the role, in chats)."""
        if self.job.kind != "chat":
            return b""
        return self._before.replace(b'"content":"', b'"role":"assistant","content":"') + self._after

    def token_events(self, first: int, last: int) -> bytes:
        """Events of tokens ``first`` to ``last - 1`` of the answer; its last token's event says
        why the answer ends."""
        if last - first == 1:  # nearly always
            events = self._before + self._word(first) + self._after
        else:
            events = b"".join(self.token_events(n, n + 1) for n in range(first, last - 1))
            return events + self.token_events(last - 1, last)
        if last < self.job.output:
            return events
        reason = b'"finish_reason":"%b"}]}\n\n' % self.job.finish_reason.encode()
        return events[: -len(b'"finish_reason":null}]}\n\n')] + reason

    def end_events(self, cached: int) -> bytes:
        """The usage event, if asked for, and ``[DONE]``."""
        if not self.job.include_usage:
            return DONE
        name = "chat.completion.chunk" if self.job.kind == "chat" else "text_completion"
        content = {**self._head, "object": name, "choices": [], "usage": self._usage(cached)}
        return b"data: %b\n\n%b" % (orjson.dumps(content), DONE)

    def whole(self, cached: int) -> bytes:
        """The answer to a request that does not stream."""
        job = self.job
        text = b"".join(self._word(number) for number in range(job.output)).decode()
        choice: dict[str, Any] = {"index": 0}
        if job.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": job.finish_reason}
        return orjson.dumps({**self._head, "choices": [choice], "usage": self._usage(cached)})

    def _word(self, number: int) -> bytes:
        return _WORDS[(self._seed + number * 7) % len(_WORDS)]

    def _usage(self, cached: int) -> dict[str, Any]:
        job = self.job
        return {
            "prompt_tokens": job.prompt,
            "total_tokens": job.prompt + job.output,
            "completion_tokens": job.output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def embeddings(job: Job, answer_id: str, dimensions: int) -> bytes:
    """Unit vectors that depend on nothing but an input's length."""
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(tokens, dimensions, job)}
        for index, tokens in enumerate(job.inputs)
    ]
    usage = {"prompt_tokens": job.prompt, "total_tokens": job.prompt}
    content = {"id": f"embd-{answer_id}", "object": "list", "model": job.model}
    return orjson.dumps({**content, "data": data, "usage": usage})


def _vector(tokens: int, dimensions: int, job: Job) -> list[float] | str:
    vector = [0.0] * dimensions
    vector[tokens % dimensions] = 1.0
    if job.base64:
        return base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
    return vector
