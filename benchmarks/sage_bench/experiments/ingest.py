"""Embedding throughput of the ingest path beside plain ``SentenceTransformer.encode``.

The same chunks, the same model, in the same run: in-process encode at its best batch size; our
embedding server asked directly; the same through the gateway; and operator ``Embed`` as a
pipeline stage drives it. CPU time is that of all processes involved.
"""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from pydantic import Field

from sage_bench.claims import Claim
from sage_bench.cputime import CpuMeter
from sage_bench.documentation_chunks import documentation_chunks
from sage_bench.experiment import Experiment, Options, RunConfig, Setup
from sage_bench.manifest import ModelEntry, Workload
from sage_bench.result_folder import ResultFolder
from sage_bench.serving import Gateway, embedding_entry, embedding_server
from sage_bench.session import RunResult, execute
from sage_bench.software import sha256_of
from sage_bench.system import Case, Metric, Reading, System
from sage_bench.worker import Worker
from sage_prefect.common.errors import BenchmarkError

ENCODERS = "sage_bench.experiments.text_encoders"
PLAIN, DIRECT, GATEWAY, OPERATOR = (
    "SentenceTransformer.encode",
    "embedding server",
    "through the gateway",
    "operator Embed",
)
BATCH_SIZES = (8, 16, 32, 64, 128)


class IngestOptions(Options):
    """``--set`` options of ``ingest``."""

    model: str = Field("all-minilm-l6-v2", description="A catalog name or a folder.")
    device: str = Field("auto", description="Device of all systems: auto, cpu, cuda.")
    chunks: int = Field(5000, ge=64, description="Chunks in the workload.")
    per_round: int = Field(1024, ge=32, description="Chunks per measurement.")


class Ingest(Experiment):
    """Chunks per second from text to vectors."""

    name = "ingest"
    title = "Chunks/s of the ingest path beside plain SentenceTransformer.encode"
    expectation = (
        "The model's own arithmetic is nearly all of the cost, so that all systems lie within some "
        "10 %. The server can even lead: it batches by tokens and tokenises outside the GIL."
    )
    metrics = (
        Metric("chunks_per_s", "chunks/s", "higher"),
        Metric("cpu_ms_per_chunk", "ms CPU, all processes", "lower"),
    )
    options = IngestOptions
    # torch's idle threads spin for a while after a batch.
    pause_s = 0.3

    def prepare(
        self, config: RunConfig, options: Any, folder: ResultFolder, stack: ExitStack
    ) -> Setup:
        """Start server, gateway and workers; check that all give the same vectors.

        Raises:
            BenchmarkError: a server does not start, or the vectors differ.
        """
        from sage_prefect.platform.models import resolve

        model = resolve(options.model)
        wanted = min(options.chunks, 64) if config.quick else options.chunks
        per_round = min(options.per_round, wanted)
        chunks = documentation_chunks(wanted, config.seed)
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sage-bench-")))
        texts = temporary / "chunks.json"
        texts.write_bytes(orjson.dumps(chunks.texts))
        key = f"sk-bench-{secrets.token_urlsafe(24)}"
        server = stack.enter_context(embedding_server(options.model, options.device, folder.logs()))
        gateway = stack.enter_context(
            Gateway(
                [embedding_entry(model.name, server)], key=key, home=temporary, logs=folder.logs()
            )
        )
        shared = {"texts": str(texts), "model": model.name}
        api = {**shared, "api_key": key}
        workers = {
            PLAIN: _worker(
                stack,
                folder,
                "PlainEncoder",
                {**shared, "model": str(model.path), "device": options.device},
            ),
            DIRECT: _worker(
                stack, folder, "ClientEncoder", {**api, "base_url": f"{server.url}/v1"}
            ),
            GATEWAY: _worker(
                stack, folder, "ClientEncoder", {**api, "base_url": f"{gateway.url}/v1"}
            ),
            # The operator finds the gateway as in production: by the environment.
            OPERATOR: _worker(
                stack,
                folder,
                "OperatorEncoder",
                shared,
                env={
                    "SAGE_BASE_URL": f"{gateway.url}/v1",
                    "SAGE_API_KEY": key,
                    "SAGE_HOME": str(temporary),
                },
            ),
        }
        differences = _differences(workers, min(32, wanted))
        sweep = _sweep(workers[PLAIN], min(128, per_round))
        best = _best(sweep)
        pids: dict[str, tuple[int, ...]] = {
            PLAIN: (),
            DIRECT: (server.pid,),
            GATEWAY: (server.pid, gateway.pid),
            OPERATOR: (server.pid, gateway.pid),
        }
        # Every system's settings beyond its constructor; the peer runs at its best.
        settings = {name: best if name == PLAIN else {} for name in workers}
        configs: dict[str, dict[str, Any]] = {
            PLAIN: {**best, "device": options.device},
            DIRECT: {"server": server.command, "request_size": 256, "concurrency": 2},
            GATEWAY: {
                "server": server.command,
                "gateway": gateway.command,
                "gateway.yaml": gateway.config,
                "request_size": 256,
                "concurrency": 2,
            },
            OPERATOR: {"gateway": gateway.command, "operator": f"Embed({model.name!r})"},
        }
        systems = tuple(
            System(
                name,
                _measure(worker, pids[name], per_round, wanted, settings[name]),
                role="peer" if name == PLAIN else "subject",
                config=configs[name],
                version=importlib.metadata.version(
                    "sentence-transformers" if name == PLAIN else "sage-prefect"
                ),
            )
            for name, worker in workers.items()
        )
        return Setup(
            cases=[Case("", systems)],
            claims=[
                Claim(
                    f"{name} throughput",
                    f"{name}: at least 0.9 of plain encode's chunks/s",
                    "chunks_per_s",
                    name,
                    ">=",
                    0.9,
                    peer=PLAIN,
                )
                for name in (GATEWAY, OPERATOR)
            ],
            models=[_model_entry(model.name, model.path, model.sha256)],
            workload=Workload(
                dataset="documentation of the installed Python standard library",
                dataset_sha256=chunks.sha256,
                items=wanted,
                sizes={**chunks.sizes(), "chunks_per_measurement": per_round},
                arrival="closed loop: all chunks of a round are there at once",
                mix="embedding only",
                tenants="one",
            ),
            facts={
                "largest_difference_to_plain": differences,
                "sweep_of_plain_encode": sweep,
            },
        )


def _worker(
    stack: ExitStack,
    folder: ResultFolder,
    name: str,
    arguments: dict[str, Any],
    env: dict[str, str] | None = None,
) -> Worker:
    log = folder.logs() / f"{name}.log"
    return stack.enter_context(Worker(f"{ENCODERS}:{name}", arguments, log=log, env=env))


def _differences(workers: dict[str, Worker], count: int) -> dict[str, float]:
    """Largest difference of a component to plain encode's, per system.

    Raises:
        BenchmarkError: a system gives other vectors (cosine under 0.9999).
    """
    plain = np.array(workers[PLAIN].call("vectors", start=0, stop=count))
    found = {}
    for name, worker in workers.items():
        vectors = np.array(worker.call("vectors", start=0, stop=count))
        norms = np.linalg.norm(plain, axis=1) * np.linalg.norm(vectors, axis=1)
        cosine = float(np.min(np.sum(plain * vectors, axis=1) / norms))
        if cosine < 0.9999:
            raise BenchmarkError(
                f"{name} gives other vectors than plain encode: smallest cosine {cosine:.6f}.",
                hint="Systems that compute different things cannot be compared.",
            )
        found[name] = float(np.max(np.abs(plain - vectors)))
    return found


def _sweep(plain: Worker, count: int) -> list[dict[str, Any]]:
    """Plain encode's chunks/s by torch threads, then by batch size at the better thread count.

    The best of two each. On a machine with busy neighbours one thread can beat two: OpenMP's
    threads spin while they wait for the one that was descheduled.
    """

    def rate(threads: int, batch_size: int) -> dict[str, Any]:
        costs = [
            plain.call("measure", start=0, stop=count, threads=threads, batch_size=batch_size)
            for _ in range(2)
        ]
        best = min(cost["wall_s"] for cost in costs)
        return {
            "settings": {"threads": threads, "batch_size": batch_size},
            "chunks_per_s": round(count / best, 2),
        }

    cores = len(os.sched_getaffinity(0))
    plain.call("measure", start=0, stop=min(count, 32))  # warm-up
    tried = [rate(threads, 32) for threads in sorted({1, cores})]
    threads = _best(tried)["threads"]
    return tried + [rate(threads, size) for size in BATCH_SIZES if size != 32]


def _best(tried: list[dict[str, Any]]) -> dict[str, Any]:
    settings: dict[str, Any] = max(tried, key=lambda each: float(each["chunks_per_s"]))["settings"]
    return settings


def _measure(
    worker: Worker, pids: Sequence[int], per_round: int, total: int, settings: dict[str, Any]
) -> Callable[[int], Reading]:
    def measure(number: int) -> Reading:
        # Other chunks each round, the same ones for all systems of a round.
        first = (max(number, 0) * per_round) % (total - per_round + 1)
        with CpuMeter(pids, poll_s=None) as meter:
            cost = worker.call("measure", start=first, stop=first + per_round, **settings)
        cpu_s = cost["cpu_s"] + meter.cpu_s
        return Reading(
            values={
                "chunks_per_s": per_round / cost["wall_s"],
                "cpu_ms_per_chunk": 1000 * cpu_s / per_round,
            },
            wall_s=cost["wall_s"],
            cpu_s=cpu_s,
            detail={
                "chunks": per_round,
                "client_cpu_s": cost["cpu_s"],
                "servers_cpu_s": meter.cpu_s,
            },
        )

    return measure


def _model_entry(name: str, path: Path, sha256: str | None) -> ModelEntry:
    from sage_prefect.platform.models import CATALOG

    entry = CATALOG.get(name)
    package = "a folder of the user's"
    if entry is not None:
        package = f"{entry.distribution}=={importlib.metadata.version(entry.distribution)}"
    tokenizer = path / "tokenizer.json"
    return ModelEntry(
        name=name,
        package=package,
        sha256=sha256 or sha256_of(path),
        quantisation="none (weights as in the folder)",
        tokenizer_sha256=sha256_of(tokenizer) if tokenizer.is_file() else "none",
    )


def run(config: RunConfig) -> RunResult:
    """Run the experiment (what a Prefect flow calls)."""
    return execute(Ingest(), config)
