"""A streamed answer as it comes in: bytes to chunks, chunks to the whole. Pure.

A stream counts as finished when it says so (``[DONE]`` or a finish reason). One that merely ends is
an error: an engine that died must not look like one that had no more to say.
"""

from __future__ import annotations

from collections.abc import Mapping

from sage_prefect.inference import faults
from sage_prefect.inference.protocol import (
    ChatChunk,
    ChatResult,
    Usage,
    parse_chunk,
    parse_number,
)
from sage_prefect.inference.sse import SSEParser


class AnswerStream:
    """Collects one streamed answer.

    Args:
        url: of the call, for messages.
        headers: of the response.
        request_id: of the call.
    """

    def __init__(self, url: str, headers: Mapping[str, str], request_id: str | None) -> None:
        self._url = url
        self._headers = headers
        self._request_id = request_id
        self._parser = SSEParser()
        self._text: list[str] = []
        self._model = ""
        self._finish_reason: str | None = None
        self._usage = Usage()
        self._first_text_ms: float | None = None
        self._latency_ms = 0.0
        self.done = False

    def feed(self, data: bytes, elapsed_ms: float) -> list[ChatChunk]:
        """The chunks that these bytes complete; what follows ``[DONE]`` is ignored.

        Args:
            elapsed_ms: time since the request was sent.

        Raises:
            EngineError: the stream carries an error event, or does not follow the protocol.
        """
        self._latency_ms = elapsed_ms
        chunks: list[ChatChunk] = []
        for event in self._parser.feed(data):
            if self.done:
                break
            if event.data.strip() == "[DONE]":
                self.done = True
                break
            error = faults.from_event(event.data, self._url)
            if error is not None:
                raise error
            for chunk in parse_chunk(event.data):
                self._collect(chunk, elapsed_ms)
                chunks.append(chunk)
        return chunks

    def end(self) -> None:
        """The connection has ended.

        Raises:
            EngineUnavailable: before the answer was finished.
        """
        if not self.done and self._finish_reason is None:
            raise faults.cut_off(self._url)
        self.done = True

    def result(self) -> ChatResult:
        """The answer so far; whole once the stream has ended. Text is that of choice 0."""
        return ChatResult(
            text="".join(self._text),
            model=self._model,
            finish_reason=self._finish_reason,
            usage=self._usage,
            engine=self._headers.get("x-sage-engine"),
            latency_ms=self._latency_ms,
            ttft_ms=self._first_text_ms,
            queue_ms=parse_number(self._headers.get("x-sage-queue-ms")),
            request_id=self._headers.get("x-request-id") or self._request_id,
        )

    def _collect(self, chunk: ChatChunk, elapsed_ms: float) -> None:
        self._model = chunk.model or self._model
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.index != 0:
            return
        if chunk.text:
            self._text.append(chunk.text)
            if self._first_text_ms is None:
                self._first_text_ms = elapsed_ms
        self._finish_reason = chunk.finish_reason or self._finish_reason
