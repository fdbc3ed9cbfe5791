"""UnifiedInferenceClient: chat, completions, embeddings over one connection pool.

::

    with UnifiedInferenceClient.create() as client:
        print(client.chat("What is a semaphore?", model="smollm2-135m").text)
        for chunk in client.chat_stream("Count to ten.", model="smollm2-135m"):
            print(chunk.text, end="")
        vectors = client.embed(["one text", "another"], model="all-minilm-l6-v2")

A client may be used from many threads. It cannot be pickled: make it where it is used (in a Dask
worker: in the operator's ``setup()``), from ``create()`` or from a pickled :class:`ClientConfig`.
A process that forks gets a connection pool of its own on its first call.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Any, NoReturn

import httpx
import numpy as np
from numpy.typing import NDArray

from sage_prefect.common.errors import EngineError
from sage_prefect.inference import discovery, embeddings, faults
from sage_prefect.inference.answer_stream import AnswerStream
from sage_prefect.inference.async_client import AsyncInferenceClient
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

__all__ = ["AsyncInferenceClient", "ChatStream", "UnifiedInferenceClient"]


class UnifiedInferenceClient:
    """Client of the gateway, or of any server that speaks OpenAI's protocol.

    Args:
        config: where the server is; :meth:`create` finds it by itself.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._closed = False
        self._pool: ThreadPoolExecutor | None = None
        self._start()

    @classmethod
    def create(
        cls,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float | None = None,
        retries: int = 2,
        **options: Any,
    ) -> UnifiedInferenceClient:
        """A client for ``base_url``, for ``SAGE_BASE_URL``, or for the gateway that runs here.

        Args:
            base_url: of the server, with or without ``/v1``.
            api_key: default ``SAGE_API_KEY``; for a server on this machine the master key.
            timeout_s: bound on a call; default ``SAGE_REQUEST_TIMEOUT`` or 600.
            retries: repetitions of a call, before its first byte.
            options: further fields of :class:`ClientConfig`.

        Raises:
            EngineUnavailable: no URL is given and no gateway answers on this machine.
            SettingsError: the URL or a variable is wrong.
        """
        options["retries"] = retries
        config = discovery.configure(base_url, api_key, timeout_s, **options)
        if config is None:
            config = discovery.found(discovery.find_gateway(), api_key, timeout_s, **options)
        return cls(config)

    def chat(
        self,
        messages: Messages,
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        context: CallContext | None = None,
        **extra: Any,
    ) -> ChatResult:
        """Answer a question, or continue a conversation.

        Args:
            messages: a user's question, or messages in OpenAI's shape.
            model: name as ``models()`` lists it.
            temperature, max_tokens: None leaves it to the server; 0 is sent as 0.
            context: urgency, tenant, deadline, request id.
            extra: any other field of the request (``top_p``, ``stop``, ``tools``, ``seed``...).

        Raises:
            EngineUnavailable: no connection, or 5xx. Flows retry it.
            EngineTimeout: out of time.
            EngineOverloaded: 429; ``retry_after`` in seconds where the server said.
            RequestRejected: 4xx; ``status`` and ``code``.
        """
        body = chat_body(messages, model, temperature=temperature, max_tokens=max_tokens, **extra)
        return self._answer("/chat/completions", body, context)

    def chat_stream(
        self,
        messages: Messages,
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        context: CallContext | None = None,
        **extra: Any,
    ) -> ChatStream:
        """As :meth:`chat`, piece by piece. The request is sent when the first chunk is asked for.

        Closing the stream (or leaving its ``with`` block) ends the answer on the server too.
        A stream that breaks off raises EngineUnavailable, also after chunks have come.
        """
        extra.setdefault("stream_options", {"include_usage": True})
        body = chat_body(
            messages,
            model,
            temperature=temperature,
            max_tokens=max_tokens,
            stream=True,
            **extra,
        )
        return ChatStream(self, self._call("/chat/completions", body, context))

    def generate(
        self,
        prompt: str,
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        context: CallContext | None = None,
        **extra: Any,
    ) -> ChatResult:
        """Continue a raw prompt (completions route, no chat template). Errors as :meth:`chat`."""
        body = completion_body(
            prompt, model, temperature=temperature, max_tokens=max_tokens, **extra
        )
        return self._answer("/completions", body, context)

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str,
        context: CallContext | None = None,
        **extra: Any,
    ) -> NDArray[np.float32]:
        """Embeddings of texts.

        Many texts go as several requests, some at once (``embed_*`` of the config); when one fails,
        those not yet sent are not sent.

        Returns:
            float32 [len(texts), dimension] in the order of ``texts``; shape (0, 0) for no texts.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than strings.
            EngineError: as :meth:`chat`.
        """
        checked = embeddings.check_texts(texts)
        config = self.config
        bodies = [
            (embeddings.embedding_body(checked[part], model, **extra), part.stop - part.start)
            for part in embeddings.split(checked, config.embed_texts, config.embed_characters)
        ]

        def send(body: bytes, count: int) -> NDArray[np.float32]:
            call = self._call("/embeddings", body, context)
            return embeddings.parse_embeddings(self._exchange(call)[0], count)

        if len(bodies) <= 1:
            return embeddings.join([send(*body) for body in bodies])
        pool = self._embedding_pool()
        sent = [pool.submit(send, *body) for body in bodies]
        try:
            return embeddings.join([future.result() for future in sent])
        finally:
            for future in sent:
                future.cancel()

    def models(self) -> list[str]:
        """Names of the models that the server offers."""
        return parse_models(self._exchange(self._call("/models", None, None))[0])

    def close(self) -> None:
        """Close the connections. Twice is fine."""
        with self._lock:
            self._closed = True
            if os.getpid() != self._pid:
                return  # the connections belong to the process that forked us
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        self._http.close()

    def __enter__(self) -> UnifiedInferenceClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a UnifiedInferenceClient holds open connections and cannot be pickled. Make it where "
            "it is used: UnifiedInferenceClient.create(), or UnifiedInferenceClient(config) from "
            "the pickled config of another one."
        )

    # -- connections ----------------------------------------------------------------------

    def _start(self) -> None:
        self._pid = os.getpid()
        self._budget = RetryBudget()
        self._pool = None
        self._http = httpx.Client(
            headers=default_headers(self.config),
            limits=pool_limits(self.config),
            trust_env=uses_environment_proxies(self.config),
        )

    def _connections(self) -> httpx.Client:
        if self._pid != os.getpid():
            # Forked: sockets shared with the parent would mix up the answers, and a lock that
            # another of its threads held would stay locked here for ever.
            self._lock = threading.Lock()
            self._start()
        if self._closed:
            raise RuntimeError("this UnifiedInferenceClient is closed.")
        return self._http

    def _embedding_pool(self) -> ThreadPoolExecutor:
        self._connections()
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self.config.embed_concurrency, thread_name_prefix="sage-embed"
                )
            return self._pool

    def _call(self, path: str, body: bytes | None, context: CallContext | None) -> Call:
        self._connections()
        return Call(self.config, self._budget, path, body, context)

    def _answer(self, path: str, body: bytes, context: CallContext | None) -> ChatResult:
        call = self._call(path, body, context)
        content, headers = self._exchange(call)
        return parse_answer(
            content, headers=headers, latency_ms=call.elapsed_ms, request_id=call.request_id
        )

    def _exchange(self, call: Call) -> tuple[bytes, httpx.Headers]:
        parts: list[bytes] = []
        with self._open(call) as response:
            try:
                for part in response.iter_bytes():
                    call.check_deadline()
                    parts.append(part)
            except httpx.HTTPError as failure:
                raise call.failed(failure) from failure
            return b"".join(parts), response.headers

    def _open(self, call: Call) -> closing[httpx.Response]:
        """A response with status 200, its body not yet read. All retries happen here."""
        client = self._connections()
        while True:
            cause: Exception | None = None
            error: EngineError
            headers = httpx.Headers()
            try:
                response = client.send(call.request(client), stream=True)
                if response.status_code == 200:
                    return closing(response)
                with closing(response):
                    content = response.read()
                headers = response.headers
                error = faults.from_status(response.status_code, content, headers, call.url)
            except (httpx.HTTPError, httpx.InvalidURL) as failure:
                error, cause = call.failed(failure), failure
            delay = call.retry_delay(error, cause, headers)
            if delay is None:
                raise error from cause
            time.sleep(delay)


class ChatStream(Iterator[ChatChunk]):
    """A streamed answer: iterate over it, or ask for its :meth:`result`. For one thread at a time.

    Made by :meth:`UnifiedInferenceClient.chat_stream`.
    """

    def __init__(self, client: UnifiedInferenceClient, call: Call) -> None:
        self._call = call
        self._answer = AnswerStream(call.url, {}, call.request_id)
        self._chunks = self._read(client)

    def __next__(self) -> ChatChunk:
        return next(self._chunks)

    def result(self) -> ChatResult:
        """The whole answer; reads what has not been read yet. Errors as ``chat_stream``."""
        for _ in self._chunks:
            pass
        return self._answer.result()

    def partial(self) -> ChatResult:
        """The answer as far as it has been read."""
        return self._answer.result()

    def close(self) -> None:
        """Stop the answer, on the server too. Twice is fine."""
        self._chunks.close()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, client: UnifiedInferenceClient) -> Generator[ChatChunk, None, None]:
        call = self._call
        with client._open(call) as response:
            self._answer = answer = AnswerStream(call.url, response.headers, call.request_id)
            try:
                # Read to the end also after [DONE], so that the connection can be used again.
                for data in response.iter_bytes():
                    yield from answer.feed(data, call.elapsed_ms)
                    if not answer.done:
                        call.check_deadline()
            except httpx.TimeoutException as failure:
                raise call.failed(failure) from failure
            except httpx.HTTPError:
                answer.end()  # no matter once the answer is whole
            else:
                answer.end()
