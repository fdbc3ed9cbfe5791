"""The ASGI application: routes, admission, disconnects. No framework on the path."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import orjson

from sage_prefect.platform.embedding_server.batcher import Batcher, EmbeddingResult
from sage_prefect.platform.embedding_server.encoder import Encoder, PairEncoder, Tokens
from sage_prefect.platform.embedding_server.metrics import Metrics
from sage_prefect.platform.embedding_server.relevance import (
    RerankRequest,
    ScoreRequest,
    lengths,
    parse_rerank,
    parse_score,
)
from sage_prefect.platform.embedding_server.request import (
    HttpError,
    Limits,
    parse_request,
)
from sage_prefect.platform.embedding_server.response import embeddings_body, models_body

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
_Work = Callable[[Scope, Receive], Awaitable[tuple[bytes, Headers]]]
_ParsePairs = Callable[..., RerankRequest | ScoreRequest]

_JSON = (b"content-type", b"application/json")


class ClientGone(Exception):  # noqa: N818 - not an error of ours
    """The client closed the connection before it had its answer."""


@dataclass(frozen=True)
class AppOptions:
    """How the application serves.

    Attributes:
        names: model names that clients may use; the first is the canonical one.
        max_queued_tokens: above this, requests are refused with 429. A request that finds the
            queue empty is always taken.
        max_requests: requests worked on at once; above, 429.
        too_long: a text longer than the model reads is cut (as the model does) or refused.
        api_key: when set, ``/v1/*`` needs it as bearer token.
        body_timeout_s: time for a client to send its body.
    """

    names: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    max_queued_tokens: int = 524_288
    max_requests: int = 512
    too_long: Literal["truncate", "error"] = "truncate"
    api_key: str | None = field(default=None, repr=False)
    body_timeout_s: float = 30.0


class EmbeddingApp:
    """An ASGI callable. It answers 503 until :meth:`serve_with` gives it a model."""

    def __init__(self, options: AppOptions, metrics: Metrics) -> None:
        self.options = options
        self.metrics = metrics
        self.draining = False
        self._encoder: Encoder | None = None
        self._batcher: Batcher | None = None
        self._created = int(time.time())
        # One thread: the tokenizer does 12,000 texts per second on one core, a hundred times what
        # the model does, and more threads would only take cores from it.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._in_flight = 0
        self._reserved_tokens = 0  # estimated, of requests not yet tokenised

    def serve_with(self, encoder: Encoder, batcher: Batcher) -> None:
        """From now on answer requests with this model."""
        self._encoder, self._batcher = encoder, batcher

    def close(self) -> None:
        """End the threads."""
        self._tokenizing.shutdown(wait=True)
        if self._batcher is not None:
            self._batcher.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point; HTTP only."""
        if scope["type"] != "http":
            raise NotImplementedError(f"ASGI scope {scope['type']!r} is not served here.")
        route = _ROUTES.get(scope["path"])
        try:
            if route is None:
                raise HttpError(
                    404,
                    f"no route {scope['path']!r}. Routes: {', '.join(_ROUTES)}.",
                    code="not_found",
                )
            method, handler = route
            if scope["method"] != method:
                raise HttpError(405, f"{scope['path']} takes {method}, not {scope['method']}.")
            if scope["path"].startswith("/v1/"):
                self._check_key(scope)
            await handler(self, scope, receive, send)
        except HttpError as error:
            headers: Headers = [_JSON]
            if error.retry_after_s is not None:
                headers.append((b"retry-after", b"%d" % error.retry_after_s))
            if error.status in (408, 413):  # the rest of the body was not read
                headers.append((b"connection", b"close"))
            await _answer(send, error.status, error.body(), headers)

    # -- routes ---------------------------------------------------------------------------

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = "draining" if self.draining else "ok" if self._batcher is not None else "loading"
        body = {"status": status, "service": "sage-embedding", "model": self.options.names[0]}
        await _answer(send, 200 if status == "ok" else 503, orjson.dumps(body), [_JSON])

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        header = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        await _answer(send, 200, self.metrics.render(), [header])

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoder, _ = self._loaded()
        body = models_body(
            self.options.names,
            self._created,
            encoder.max_tokens,
            None if isinstance(encoder, PairEncoder) else encoder.dimension,
        )
        await _answer(send, 200, body, [_JSON])

    async def _embeddings(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._count(self._embed, scope, receive, send)

    async def _rerank(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._count(partial(self._relate, parse_rerank), scope, receive, send)

    async def _score(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._count(partial(self._relate, parse_score), scope, receive, send)

    async def _count(self, work: _Work, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with what ``work`` makes; requests in flight and outcomes are counted."""
        start = time.perf_counter()
        status = 500
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        try:
            body, headers = await work(scope, receive)
            status = 200
        except HttpError as error:
            status = error.status
            raise
        except ClientGone:
            status = 499  # nginx's code for it; nobody reads the answer
            return
        except Exception as error:
            log.exception("a request failed")
            raise HttpError(500, f"the model failed: {type(error).__name__}.") from error
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.set(self._in_flight)
            self.metrics.requests.labels(str(status)).inc()
            self.metrics.request_seconds.observe(time.perf_counter() - start)
        await _answer(send, 200, body, headers)

    async def _embed(self, scope: Scope, receive: Receive) -> tuple[bytes, Headers]:
        encoder, _ = self._admit()
        if isinstance(encoder, PairEncoder):
            raise self._wrong_mode("scores pairs of texts", "/v1/rerank or /v1/score")
        content = await self._read_body(scope, receive)
        request = parse_request(
            content,
            models=self.options.names,
            dimension=encoder.dimension,
            limits=self.options.limits,
        )
        tokenize = partial(encoder.tokenize, request.texts)
        tokens, result, header = await self._run(
            tokenize, list(map(len, request.texts)), "input", receive
        )
        body = embeddings_body(result.vectors, request.encoding_format, request.model, tokens)
        return body, [_JSON, header]

    async def _relate(
        self, parse: _ParsePairs, scope: Scope, receive: Receive
    ) -> tuple[bytes, Headers]:
        """Scores of pairs of texts."""
        encoder, _ = self._admit()
        if not isinstance(encoder, PairEncoder):
            raise self._wrong_mode("embeds single texts", "/v1/embeddings")
        content = await self._read_body(scope, receive)
        request = parse(content, models=self.options.names, limits=self.options.limits)
        tokenize = partial(encoder.tokenize_pairs, request.pairs)
        tokens, result, header = await self._run(
            tokenize, lengths(request.pairs), "documents", receive
        )
        scores = result.vectors[:, 0]
        tag, now = secrets.token_hex(8), int(time.time())
        return request.answer(scores, tokens, tag, now), [_JSON, header]

    async def _run(
        self,
        tokenize: Callable[[], list[Tokens]],
        characters: list[int],
        param: str,
        receive: Receive,
    ) -> tuple[int, EmbeddingResult, tuple[bytes, bytes]]:
        """Tokenise and run through the model: tokens, result, and the header with the times.

        Args:
            characters: of each text or pair.
            param: the field that holds them, for errors.
        """
        encoder, batcher = self._loaded()
        # An English word piece is some four characters; what the model does not read is no work.
        estimate = sum(min(2 + length // 4, encoder.max_tokens) for length in characters)
        queued = batcher.queued_tokens + self._reserved_tokens
        if queued and queued + estimate > self.options.max_queued_tokens:
            raise self._overloaded(f"{queued} tokens are queued", batcher)
        start = time.perf_counter()
        self._reserved_tokens += estimate
        try:
            loop = asyncio.get_running_loop()
            tokens = await _unless_gone(loop.run_in_executor(self._tokenizing, tokenize), receive)
        finally:
            self._reserved_tokens -= estimate
        tokenized = time.perf_counter()
        self._check_lengths(tokens, encoder, param)
        ids = [text.ids for text in tokens]
        result = await _unless_gone(batcher.embed(ids), receive)
        if not np.isfinite(result.vectors).all():
            raise HttpError(500, "the model made a vector that is not finite.")
        timing = (
            f"tokenize;dur={(tokenized - start) * 1e3:.2f}, queue;dur={result.queue_s * 1e3:.2f}, "
            f"inference;dur={result.compute_s * 1e3:.2f}"
        )
        return sum(map(len, ids)), result, (b"server-timing", timing.encode())

    # -- checks ---------------------------------------------------------------------------

    def _loaded(self) -> tuple[Encoder, Batcher]:
        if self._encoder is None or self._batcher is None:
            raise HttpError(
                503,
                f"model {self.options.names[0]!r} is loading; /health says when it is ready.",
                code="loading",
                retry_after_s=1,
            )
        return self._encoder, self._batcher

    def _admit(self) -> tuple[Encoder, Batcher]:
        encoder, batcher = self._loaded()
        if self._in_flight > self.options.max_requests:
            raise self._overloaded(f"{self._in_flight - 1} requests are in flight", batcher)
        return encoder, batcher

    def _wrong_mode(self, does: str, route: str) -> HttpError:
        return HttpError(
            400,
            f"the model {self.options.names[0]!r} {does}: use {route}.",
            param="model",
            code="model_mode_mismatch",
        )

    def _check_key(self, scope: Scope) -> None:
        expected = self.options.api_key
        if expected is None:
            return
        given = _header(scope, b"authorization") or b""
        if not hmac.compare_digest(given, b"Bearer " + expected.encode()):
            raise HttpError(
                401,
                "the API key is missing or wrong: send it as bearer token.",
                code="invalid_api_key",
            )

    def _check_lengths(self, tokens: list[Tokens], encoder: Encoder, param: str) -> None:
        truncated = [index for index, text in enumerate(tokens) if text.truncated]
        if not truncated:
            return
        if self.options.too_long == "error":
            raise HttpError(
                400,
                f"'{param}[{truncated[0]}]' has more than the {encoder.max_tokens} tokens that the "
                "model reads.",
                param=param,
                code="context_length_exceeded",
            )
        self.metrics.truncated.inc(len(truncated))

    def _overloaded(self, why: str, batcher: Batcher) -> HttpError:
        seconds = batcher.seconds_for(batcher.queued_tokens)
        retry_after = 1 if seconds is None else min(60, max(1, math.ceil(seconds)))
        return HttpError(
            429,
            f"the embedding server is full: {why}.",
            code="overloaded",
            retry_after_s=retry_after,
        )

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.options.limits.max_body_bytes
        declared = _header(scope, b"content-length")
        if declared is not None and int(declared) > limit:
            raise _too_large(limit)
        try:
            return await asyncio.wait_for(_collect(receive, limit), self.options.body_timeout_s)
        except asyncio.TimeoutError:
            raise HttpError(
                408, f"the body did not arrive within {self.options.body_timeout_s:g} s."
            ) from None


_Handler = Callable[[EmbeddingApp, Scope, Receive, Send], Awaitable[None]]
_ROUTES: dict[str, tuple[str, _Handler]] = {
    "/v1/embeddings": ("POST", EmbeddingApp._embeddings),
    "/v1/rerank": ("POST", EmbeddingApp._rerank),
    "/v1/score": ("POST", EmbeddingApp._score),
    "/v1/models": ("GET", EmbeddingApp._models),
    "/health": ("GET", EmbeddingApp._health),
    "/metrics": ("GET", EmbeddingApp._metrics),
}


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def _too_large(limit: int) -> HttpError:
    return HttpError(
        413, f"the body has more than {limit} bytes: split the request.", code="body_too_large"
    )


async def _collect(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _unless_gone(work: Awaitable[Any], receive: Receive) -> Any:
    """The result of ``work``; cancels it and raises ClientGone when the client goes first."""
    task = asyncio.ensure_future(work)
    # The body has been read: the only message left is http.disconnect.
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for pending in (task, gone):
            if not pending.done():
                pending.cancel()
                with suppress(asyncio.CancelledError):
                    await pending


async def _answer(send: Send, status: int, body: bytes, headers: Headers) -> None:
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
