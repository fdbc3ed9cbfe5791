"""AsyncInferenceClient: the twin of UnifiedInferenceClient for an event loop.

Same names, same errors; calls are awaited and streams are iterated with ``async for``::

    async with AsyncInferenceClient.create() as client:
        result = await client.chat("What is a semaphore?", model="smollm2-135m")
        async for chunk in client.chat_stream("Count to ten.", model="smollm2-135m"):
            print(chunk.text, end="")

One client belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn

import httpx
import numpy as np
from numpy.typing import NDArray

from sage_prefect.common.errors import EngineError
from sage_prefect.inference import discovery, embeddings, faults
from sage_prefect.inference.answer_stream import AnswerStream
from sage_prefect.inference.call import (
    Call,
    default_headers,
    pool_limits,
    uses_environment_proxies,
)
from sage_prefect.inference.config import ClientConfig
from sage_prefect.inference.protocol import (
    CallContext,
    ChatChunk,
    ChatResult,
    Messages,
    chat_body,
    completion_body,
    parse_answer,
    parse_models,
)
from sage_prefect.inference.retry import RetryBudget

FindConfig = Callable[[], Awaitable[ClientConfig]]


class AsyncInferenceClient:
    """Client of the gateway, or of any server that speaks OpenAI's protocol.

    Args:
        config: where the server is, or a coroutine function that finds it when first needed.
    """

    def __init__(self, config: ClientConfig | FindConfig) -> None:
        self._config = config if isinstance(config, ClientConfig) else None
        self._find = None if isinstance(config, ClientConfig) else config
        self._finding = asyncio.Lock()
        self._budget = RetryBudget()
        self._http: httpx.AsyncClient | None = None
        self._closed = False

    @classmethod
    def create(
        cls,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float | None = None,
        retries: int = 2,
        **options: Any,
    ) -> AsyncInferenceClient:
        """As ``UnifiedInferenceClient.create``, but does not touch the network yet.

        Without a URL the gateway is looked for on ``async with`` or on the first call, and
        EngineUnavailable is raised there.
        """
        options["retries"] = retries
        config = discovery.configure(base_url, api_key, timeout_s, **options)

        async def find() -> ClientConfig:
            url = await discovery.find_gateway_async()
            return discovery.found(url, api_key, timeout_s, **options)

        return cls(find if config is None else config)

    @property
    def config(self) -> ClientConfig:
        """Where the server is.

        Raises:
            RuntimeError: it has not been looked for yet.
        """
        if self._config is None:
            raise RuntimeError("the gateway has not been looked for yet: enter the client first.")
        return self._config

    async def chat(
        self,
        messages: Messages,
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        context: CallContext | None = None,
        **extra: Any,
    ) -> ChatResult:
        """As ``UnifiedInferenceClient.chat``. Cancelling it ends the answer on the server too."""
        body = chat_body(messages, model, temperature=temperature, max_tokens=max_tokens, **extra)
        return await self._answer("/chat/completions", body, context)

    def chat_stream(
        self,
        messages: Messages,
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        context: CallContext | None = None,
        **extra: Any,
    ) -> AsyncChatStream:
        """As ``UnifiedInferenceClient.chat_stream``; iterate with ``async for``."""
        extra.setdefault("stream_options", {"include_usage": True})
        body = chat_body(
            messages,
            model,
            temperature=temperature,
            max_tokens=max_tokens,
            stream=True,
            **extra,
        )
        return AsyncChatStream(self, "/chat/completions", body, context)

    async def generate(
        self,
        prompt: str,
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        context: CallContext | None = None,
        **extra: Any,
    ) -> ChatResult:
        """As ``UnifiedInferenceClient.generate``."""
        body = completion_body(
            prompt, model, temperature=temperature, max_tokens=max_tokens, **extra
        )
        return await self._answer("/completions", body, context)

    async def embed(
        self,
        texts: Sequence[str],
        *,
        model: str,
        context: CallContext | None = None,
        **extra: Any,
    ) -> NDArray[np.float32]:
        """As ``UnifiedInferenceClient.embed``: float32 [len(texts), dimension].

        When one request fails, the others are cancelled.
        """
        checked = embeddings.check_texts(texts)
        await self._connections()
        config = self.config
        gate = asyncio.Semaphore(config.embed_concurrency)

        async def send(part: slice) -> NDArray[np.float32]:
            async with gate:
                body = embeddings.embedding_body(checked[part], model, **extra)
                call = await self._call("/embeddings", body, context)
                content, _ = await self._exchange(call)
                return embeddings.parse_embeddings(content, part.stop - part.start)

        parts = embeddings.split(checked, config.embed_texts, config.embed_characters)
        tasks = [asyncio.ensure_future(send(part)) for part in parts]
        try:
            return embeddings.join(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def models(self) -> list[str]:
        """Names of the models that the server offers."""
        content, _ = await self._exchange(await self._call("/models", None, None))
        return parse_models(content)

    async def close(self) -> None:
        """Close the connections. Twice is fine."""
        self._closed = True
        if self._http is not None:
            await self._http.aclose()

    async def __aenter__(self) -> AsyncInferenceClient:
        await self._connections()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AsyncInferenceClient holds open connections and cannot be pickled. Make it where "
            "it is used: AsyncInferenceClient.create(), or AsyncInferenceClient(config) from the "
            "pickled config of another one."
        )

    # -- connections ----------------------------------------------------------------------

    async def _connections(self) -> httpx.AsyncClient:
        if self._closed:
            raise RuntimeError("this AsyncInferenceClient is closed.")
        async with self._finding:
            if self._config is None:
                assert self._find is not None
                self._config = await self._find()
            if self._http is None:
                self._http = httpx.AsyncClient(
                    headers=default_headers(self._config),
                    limits=pool_limits(self._config),
                    trust_env=uses_environment_proxies(self._config),
                )
        return self._http

    async def _call(self, path: str, body: bytes | None, context: CallContext | None) -> Call:
        await self._connections()
        return Call(self.config, self._budget, path, body, context)

    async def _answer(self, path: str, body: bytes, context: CallContext | None) -> ChatResult:
        call = await self._call(path, body, context)
        content, headers = await self._exchange(call)
        return parse_answer(
            content, headers=headers, latency_ms=call.elapsed_ms, request_id=call.request_id
        )

    async def _exchange(self, call: Call) -> tuple[bytes, httpx.Headers]:
        parts: list[bytes] = []
        async with aclosing(await self._open(call)) as response:
            try:
                async for part in response.aiter_bytes():
                    call.check_deadline()
                    parts.append(part)
            except httpx.HTTPError as failure:
                raise call.failed(failure) from failure
            return b"".join(parts), response.headers

    async def _open(self, call: Call) -> httpx.Response:
        """A response with status 200, its body not yet read. All retries happen here."""
        client = await self._connections()
        while True:
            cause: Exception | None = None
            error: EngineError
            headers = httpx.Headers()
            try:
                response = await client.send(call.request(client), stream=True)
                if response.status_code == 200:
                    return response
                async with aclosing(response):
                    content = await response.aread()
                headers = response.headers
                error = faults.from_status(response.status_code, content, headers, call.url)
            except (httpx.HTTPError, httpx.InvalidURL) as failure:
                error, cause = call.failed(failure), failure
            delay = call.retry_delay(error, cause, headers)
            if delay is None:
                raise error from cause
            await asyncio.sleep(delay)


class AsyncChatStream(AsyncIterator[ChatChunk]):
    """A streamed answer: iterate over it, or await its :meth:`result`.

    Made by :meth:`AsyncInferenceClient.chat_stream`.
    """

    def __init__(
        self, client: AsyncInferenceClient, path: str, body: bytes, context: CallContext | None
    ) -> None:
        self._answer = AnswerStream(path, {}, None)
        self._chunks = self._read(client, path, body, context)

    async def __anext__(self) -> ChatChunk:
        return await self._chunks.__anext__()

    async def result(self) -> ChatResult:
        """The whole answer; reads what has not been read yet. Errors as ``chat_stream``."""
        async for _ in self._chunks:
            pass
        return self._answer.result()

    def partial(self) -> ChatResult:
        """The answer as far as it has been read."""
        return self._answer.result()

    async def close(self) -> None:
        """Stop the answer, on the server too. Twice is fine."""
        await self._chunks.aclose()

    async def __aenter__(self) -> AsyncChatStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _read(
        self, client: AsyncInferenceClient, path: str, body: bytes, context: CallContext | None
    ) -> AsyncGenerator[ChatChunk, None]:
        call = await client._call(path, body, context)
        async with aclosing(await client._open(call)) as response:
            self._answer = answer = AnswerStream(call.url, response.headers, call.request_id)
            try:
                # Read to the end also after [DONE], so that the connection can be used again.
                async for data in response.aiter_bytes():
                    for chunk in answer.feed(data, call.elapsed_ms):
                        yield chunk
                    if not answer.done:
                        call.check_deadline()
            except httpx.TimeoutException as failure:
                raise call.failed(failure) from failure
            except httpx.HTTPError:
                answer.end()  # no matter once the answer is whole
            else:
                answer.end()
