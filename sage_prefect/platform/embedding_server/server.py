"""The process: socket, event loop, loading, signals, drain."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import uvicorn

from sage_prefect.common.errors import PortInUseError, SageError, ServiceError
from sage_prefect.platform.embedding_server.app import AppOptions, EmbeddingApp
from sage_prefect.platform.embedding_server.batcher import Batcher
from sage_prefect.platform.embedding_server.encoder import Encoder
from sage_prefect.platform.embedding_server.metrics import Metrics
from sage_prefect.platform.embedding_server.request import Limits
from sage_prefect.platform.models import ModelFiles, resolve

log = logging.getLogger(__name__)

# Measured (docs/decisions/0004-embedding-server.md): on a CPU the activations of a batch shall
# stay in its cache; on a GPU the kernels shall be long.
CPU_TOKEN_BUDGET = 1024
CUDA_TOKEN_BUDGET = 16_384

_BACKLOG = 1024


@dataclass(frozen=True)
class ServerOptions:
    """Command line of the server.

    Attributes:
        model: catalog name or path.
        served_name: name for clients; default: the model's.
        port: 0 lets the kernel choose.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        dtype: number format: ``auto`` (float16 on a GPU, float32 on a CPU) or its name.
        token_budget: most tokens of a batch, padding counted; None: by device.
        threads: CPU threads for the model in all; None: as many as this process may use.
        workers: batches at once; None: one per thread on a CPU (up to 8), one on a GPU.
        drain_s: time for requests in flight when told to stop.
    """

    model: str
    served_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8090
    device: str = "auto"
    dtype: str = "auto"
    token_budget: int | None = None
    threads: int | None = None
    workers: int | None = None
    max_queued_tokens: int = AppOptions.max_queued_tokens
    max_requests: int = AppOptions.max_requests
    limits: Limits = field(default_factory=Limits)
    too_long: Literal["truncate", "error"] = "truncate"
    api_key: str | None = field(default=None, repr=False)
    drain_s: float = 30.0


@dataclass(frozen=True)
class Parallelism:
    """How the model uses the cores: ``workers`` threads, each with ``threads_each`` of torch's."""

    workers: int
    threads_each: int
    token_budget: int


def choose_parallelism(options: ServerOptions, device: str, cores: int) -> Parallelism:
    """Fill in what the options leave open.

    Many workers with one thread each beat one worker with many: batches stay small enough for the
    cache, and no thread waits for another at the end of each operation.
    """
    on_cpu = device == "cpu"
    threads = options.threads or cores
    workers = options.workers or (min(threads, 8) if on_cpu else 1)
    return Parallelism(
        workers=workers,
        threads_each=max(1, threads // workers),
        token_budget=options.token_budget or (CPU_TOKEN_BUDGET if on_cpu else CUDA_TOKEN_BUDGET),
    )


def keep_offline() -> None:
    """No library below may ask a hub for anything: call before they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # The tokenizer has one thread on purpose (app.py).
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def serve(options: ServerOptions) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is in flight.

    The port is bound at once and ``/health`` answers 503 while the model loads.

    Raises:
        ModelNotFoundError: no such model.
        PortInUseError: the port is taken.
        ServiceError: the model cannot be served, or loading it failed.
    """
    files = resolve(options.model)
    if files.format != "safetensors" or files.mode == "chat":
        raise ServiceError(
            f"model {files.name!r} ({files.format}, {files.mode}) cannot be run by this server.",
            hint="It serves embedding models in sentence-transformers layout and cross-encoders; "
            "for chat models see `sage llm serve`.",
        )
    with _bind(options.host, options.port) as listener:
        app = EmbeddingApp(
            AppOptions(
                names=(options.served_name or files.name,),
                limits=options.limits,
                max_queued_tokens=options.max_queued_tokens,
                max_requests=options.max_requests,
                too_long=options.too_long,
                api_key=options.api_key,
            ),
            Metrics(),
        )
        try:
            _event_loop_runner()(_serve(app, listener, options, files))
        finally:
            app.close()


def _event_loop_runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    try:
        import uvloop
    except ImportError:  # no wheel for this platform; asyncio does the same, slower
        return asyncio.run
    runner: Callable[[Coroutine[Any, Any, None]], None] = uvloop.run
    return runner


async def _serve(
    app: EmbeddingApp, listener: socket.socket, options: ServerOptions, files: ModelFiles
) -> None:
    server = _Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            # Longer than clients keep idle connections, so that they are the ones to close.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(options.drain_s)),
        ),
        on_stop=lambda: setattr(app, "draining", True),
    )
    host, port = listener.getsockname()[:2]
    log.info("listening on http://%s:%d, loading %s", host, port, options.model)
    loading = asyncio.create_task(_load(app, options, files))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await asyncio.wait((loading, serving), return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and loading.exception() is not None:
        server.should_exit = True
    await serving
    # A stop while the model loads: the thread that loads cannot be interrupted, so wait for it.
    await loading


def load_encoder(path: Path, device: str, dtype: str = "auto") -> Encoder:
    """The fast encoder where it computes the model exactly, else the general one.

    Raises:
        ServiceError: the model cannot be loaded.
    """
    from sage_prefect.platform.embedding_server.bert import BertEncoder, UnsupportedModel

    try:
        return BertEncoder(path, device, dtype)
    except UnsupportedModel as reason:
        log.info("loading through sentence-transformers: %s", reason.message)
    except SageError:
        raise
    except Exception as error:
        raise _unloadable(path, error) from error
    from sage_prefect.platform.embedding_server.sentence_transformer import (
        SentenceTransformerEncoder,
    )

    try:
        return SentenceTransformerEncoder(path, device, dtype)
    except SageError:
        raise
    except Exception as error:
        raise _unloadable(path, error) from error


def load_cross_encoder(path: Path, device: str, dtype: str = "auto") -> Encoder:
    """A model that scores pairs of texts.

    Raises:
        ServiceError: the model cannot be loaded.
    """
    from sage_prefect.platform.embedding_server.cross_encoder import CrossEncoder

    try:
        return CrossEncoder(path, device, dtype)
    except SageError:
        raise
    except Exception as error:
        raise _unloadable(path, error) from error


def _unloadable(path: Path, error: Exception) -> ServiceError:
    return ServiceError(
        f"the model at {path} cannot be loaded: {error}.",
        hint="Check that the folder is complete; `sage models pull` fetches it anew.",
    )


async def _load(app: EmbeddingApp, options: ServerOptions, files: ModelFiles) -> None:
    start = time.perf_counter()
    load = load_cross_encoder if files.mode == "rerank" else load_encoder
    encoder = await asyncio.to_thread(load, files.path, options.device, options.dtype)
    plan = choose_parallelism(options, encoder.device, len(os.sched_getaffinity(0)))
    batcher = Batcher(
        encoder,
        workers=plan.workers,
        token_budget=plan.token_budget,
        metrics=app.metrics,
        on_thread_start=lambda: encoder.bound_threads(plan.threads_each),
    )
    await batcher.warm_up()
    app.serve_with(encoder, batcher)
    log.info(
        "ready",
        extra={
            "fields": {
                "model": app.options.names[0],
                "device": encoder.device,
                "dimension": encoder.dimension,
                "max_tokens_per_text": encoder.max_tokens,
                "workers": plan.workers,
                "threads_each": plan.threads_each,
                "batch_tokens": plan.token_budget,
                "load_s": round(time.perf_counter() - start, 2),
            }
        },
    )


class _Server(uvicorn.Server):
    """uvicorn with signals that only stop it: a drained stop is a success (exit code 0)."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own re-raises the signal at the end, which kills the process with -15.
        signals = (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: stop taking connections and drain. A second SIGINT: stop at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self._on_stop()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # connections wait from now on, not only once the loop runs
    except OSError as error:
        listener.close()
        raise PortInUseError(
            f"cannot listen on {host}:{port}: {error.strerror}.",
            hint="Stop what listens there, or choose another --port.",
        ) from error
    return listener
