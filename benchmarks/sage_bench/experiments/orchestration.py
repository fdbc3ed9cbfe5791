"""What does a partition cost as a Prefect task, beside a plain Dask task?

The same function on the same two Dask workers: ``Client.map``; a flow through SAGE's task
runner; a SAGE pipeline as a flow, with all that it adds (plan, counts, commits, report); a flow
through prefect-dask's own runner.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import Field

from sage_bench.claims import Claim
from sage_bench.cputime import CpuMeter
from sage_bench.experiment import Experiment, Options, RunConfig, Setup
from sage_bench.experiments import partition_runners
from sage_bench.manifest import Workload
from sage_bench.result_folder import ResultFolder
from sage_bench.serving import DaskCluster, prefect_server
from sage_bench.session import RunResult, execute
from sage_bench.system import Case, Metric, Reading, System
from sage_bench.worker import Worker

RUNNERS = "sage_bench.experiments.partition_runners"
PLAIN, SAGE, STOCK = "plain Dask", "SageTaskRunner", "DaskTaskRunner"
PIPELINE = "Pipeline.to_flow()"


class OrchestrationOptions(Options):
    """``--set`` options of ``orchestration``."""

    partitions: int = Field(200, ge=1, description="Partitions per measurement.")
    stock_partitions: int = Field(
        40, ge=0, description="The same for the stock runner, which is dear; 0 leaves it out."
    )
    work_ms: float = Field(0.0, ge=0, description="CPU that each partition spends.")


class Orchestration(Experiment):
    """Cost per partition, the flow's own start and end included."""

    name = "orchestration"
    title = "Cost per partition as a Prefect task beside a plain Dask task"
    expectation = (
        "Plain Dask 2 ms per partition; through SAGE's runner some 10 ms more, most of it "
        "Prefect's task engine; through the stock runner 100 to 200 ms, which settings and TLS "
        "contexts take. At the planned partition sizes (1 to 5 s) SAGE's cost is about 1 %."
    )
    metrics = (
        Metric("wall_ms_per_partition", "ms", "lower"),
        Metric("cpu_ms_per_partition", "ms CPU of client, scheduler and workers", "lower"),
        Metric("server_cpu_ms_per_partition", "ms CPU of the Prefect server", "lower"),
    )
    options = OrchestrationOptions
    # The Prefect server records task runs from events that arrive after the flow's end.
    pause_s = 1.5

    def prepare(
        self, config: RunConfig, options: Any, folder: ResultFolder, stack: ExitStack
    ) -> Setup:
        """Start Prefect's server, the cluster and a client per system."""
        count = min(options.partitions, 20) if config.quick else options.partitions
        stock = min(options.stock_partitions, 4 if config.quick else options.stock_partitions)
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sage-bench-")))
        server = stack.enter_context(prefect_server(home / "prefect", folder.logs()))
        api_url = f"{server.url}/api"
        cluster = stack.enter_context(DaskCluster(api_url=api_url, home=home, logs=folder.logs()))
        env = {
            "PREFECT_API_URL": api_url,
            "PREFECT_HOME": str(home / "client"),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "SAGE_HOME": str(home),
        }
        plans: dict[str, tuple[str, dict[str, Any], int]] = {
            PLAIN: ("PlainDask", {"address": cluster.address}, count),
            SAGE: ("PrefectTasks", {"address": cluster.address, "runner": "sage"}, count),
            PIPELINE: ("PipelineFlow", {"address": cluster.address}, count),
        }
        if stock:
            arguments = {"address": cluster.address, "runner": "stock"}
            plans[STOCK] = ("PrefectTasks", arguments, stock)
        systems = []
        for name, (kind, arguments, partitions) in plans.items():
            log = folder.logs() / f"{name.replace(' ', '-')}.log"
            worker = stack.enter_context(Worker(f"{RUNNERS}:{kind}", arguments, log=log, env=env))
            systems.append(
                System(
                    name,
                    _measure(worker, cluster.pid, server.pid, partitions, options.work_ms),
                    role="peer" if name == PLAIN else "subject",
                    config={
                        "runner": kind,
                        "partitions": partitions,
                        "cluster": cluster.command,
                        "environment": env,
                        **{k: v for k, v in arguments.items() if k != "address"},
                    },
                    version=_version(name),
                )
            )
        return Setup(
            cases=[Case("", tuple(systems))],
            claims=_claims(options.work_ms),
            workload=Workload(
                dataset=f"partitions that spend {options.work_ms:g} ms of CPU each",
                dataset_sha256=hashlib.sha256(
                    inspect.getsource(partition_runners.partition).encode()
                ).hexdigest(),
                items=count,
                sizes={"partitions": count, "stock_partitions": stock},
                arrival="closed loop: all partitions are submitted at once",
                mix="independent partitions",
                tenants="one",
            ),
        )


def _claims(work_ms: float) -> list[Claim]:
    cost = "a partition of {} costs at most 50 ms of CPU beyond its work: 5 % of a second"
    claims = [
        Claim(f"partition-cost {system}", cost.format(system), "cpu_ms_per_partition", system,
              "<=", 50.0 + work_ms)
        for system in (SAGE, PIPELINE)
    ]  # fmt: skip
    if work_ms >= 100:
        text = "partitions of 100 ms or more take at most 1.2 of plain Dask's time"
        claims.append(
            Claim("beside-plain-dask", text, "wall_ms_per_partition", SAGE, "<=", 1.2, peer=PLAIN)
        )
    return claims


def _version(system: str) -> str:
    package = {PLAIN: "distributed", STOCK: "prefect-dask"}.get(system, "sage-prefect")
    return f"{package} {importlib.metadata.version(package)}"


def _measure(
    worker: Worker, cluster: int, server: int, count: int, work_ms: float
) -> Callable[[int], Reading]:
    def measure(_round: int) -> Reading:
        with (
            CpuMeter([server], poll_s=None) as serving,
            CpuMeter([cluster], poll_s=None) as working,
        ):
            cost = worker.call("measure", count=count, work_ms=work_ms)
        cpu_s = cost["cpu_s"] + working.cpu_s
        return Reading(
            values={
                "wall_ms_per_partition": 1000 * cost["wall_s"] / count,
                "cpu_ms_per_partition": 1000 * cpu_s / count,
                "server_cpu_ms_per_partition": 1000 * serving.cpu_s / count,
            },
            wall_s=cost["wall_s"],
            cpu_s=cpu_s + serving.cpu_s,
            detail={
                "partitions": count,
                "client_cpu_s": cost["cpu_s"],
                "cluster_cpu_s": working.cpu_s,
                "server_cpu_s": serving.cpu_s,
            },
        )

    return measure


def run(config: RunConfig) -> RunResult:
    """Run the experiment (what a Prefect flow calls)."""
    return execute(Orchestration(), config)
