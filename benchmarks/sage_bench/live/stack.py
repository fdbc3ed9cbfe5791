"""Mock engines and the real gateway in front of them, as processes of their own."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import yaml

from sage_bench.server import Server
from sage_bench.simulation.scenario import LlmGroup, ScenarioSpec
from sage_prefect.common.errors import BenchmarkError

_SAGE = (sys.executable, "-m", "sage_prefect.cli.main", "bench", "mock-engine")
DRIVER, DEVICE = "vllm", "cuda"
EVENTS = "events.jsonl"


class LiveStack:
    """The engines of a scenario behind a gateway. Use as a context manager.

    Args:
        spec: says which engines there are; those of one group live in one process.
        policy: the gateway's.
        folder: for the gateway's configuration and the logs.
        record: write the gateway's event log there, too.

    Raises:
        BenchmarkError: on entering: a process does not start.
    """

    def __init__(
        self, spec: ScenarioSpec, policy: str, folder: Path, *, record: bool = False
    ) -> None:
        self._spec, self._policy, self._folder = spec, policy, folder
        self._record = record
        self._processes = ExitStack()
        self._engines: list[Server] = []
        self.url = ""
        """The gateway's, without ``/v1``."""

    def __enter__(self) -> LiveStack:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as starting:
            deployments = []
            for group in self._spec.engines:
                if isinstance(group, LlmGroup):
                    process = starting.enter_context(self._engine_process(group))
                    self._engines.append(process)
                    deployments += self._deployments(group, process)
            gateway = starting.enter_context(self._gateway(deployments))
            self.url = gateway.url
            self._processes = starting.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._processes.close()

    def engine_states(self) -> list[dict[str, Any]]:
        """What the mock engines' control ports say, in the order of the scenario."""
        with httpx.Client(timeout=10.0, trust_env=False) as client:
            return [
                state
                for process in self._engines
                for state in client.get(process.url + "/engines").json()
            ]

    def _engine_process(self, group: LlmGroup) -> Server:
        options = {
            "count": group.count,
            "model": group.model,
            "profile": group.profile,
            "speed": group.speed,
            "max-num-seqs": group.max_num_seqs,
            "max-num-batched-tokens": group.max_num_batched_tokens,
            "kv-tokens": group.kv_tokens,
            "max-queued-requests": group.max_waiting,
            "control-port": "{port}",
        }
        command = [*_SAGE]
        for name, value in options.items():
            if value is not None:
                command += [f"--{name}", str(value)]
        return Server(
            f"mock engines {group.name}",
            command,
            log=self._folder / f"{group.name}.log",
            ready="/engines",
        )

    def _deployments(self, group: LlmGroup, process: Server) -> list[dict[str, Any]]:
        found = httpx.get(process.url + "/engines", timeout=10.0, trust_env=False).json()
        if len(found) != group.count:
            raise BenchmarkError(f"{len(found)} mock engines run instead of {group.count}.")
        return [
            {
                "model_name": group.model,
                "litellm_params": {"model": f"openai/{group.model}", "api_base": state["url"]},
                "model_info": {
                    "id": f"{group.name}-{number}",
                    "mode": "chat",
                    "engine": DRIVER,
                    "device": DEVICE,
                    "max_concurrency": group.window,
                },
            }
            for number, state in enumerate(found)
        ]

    def _gateway(self, deployments: list[dict[str, Any]]) -> Server:
        limits = self._spec.limits
        config = {
            "model_list": deployments,
            "router_settings": {
                "routing_strategy": self._policy,
                "num_retries": limits.max_retries,
            },
            "sage_settings": {
                "queue": {
                    "max_requests": limits.max_queued_requests,
                    "timeout_s": limits.queue_timeout_s,
                },
            },
        }
        file = self._folder / "gateway.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        record = ("--record", str(self._folder / EVENTS)) if self._record else ()
        arguments = ("--config", str(file), "--port", "{port}", "--no-auth", *record)
        return Server(
            "gateway",
            [sys.executable, "-m", "sage_gateway", *arguments, "--log-level", "WARNING"],
            log=self._folder / "gateway.log",
            ready="/ready",
        )
