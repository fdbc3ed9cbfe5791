"""The servers that experiments start, configured as ``sage up`` would."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from sage_bench.server import Server


def embedding_server(model: str, device: str, logs: Path) -> Server:
    """SAGE's embedding server for a catalog model or a folder."""
    command = [
        *(sys.executable, "-m", "sage_prefect.platform.embedding_server"),
        *("--model", model, "--host", "127.0.0.1", "--port", "{port}", "--device", device),
    ]
    return Server("embedding server", command, log=logs / "embedding-server.log")


def embedding_entry(model: str, server: Server, max_concurrency: int = 32) -> dict[str, Any]:
    """An entry of ``model_list`` in gateway.yaml."""
    return {
        "model_name": model,
        "litellm_params": {"model": f"openai/{model}", "api_base": f"{server.url}/v1"},
        "model_info": {
            "mode": "embedding",
            "engine": "sentence-transformers",
            "device": "cpu",
            "max_concurrency": max_concurrency,
        },
    }


class Gateway(Server):
    """The gateway with a configuration of its own; ``config`` goes into the manifest.

    Args:
        models: entries of ``model_list``.
        key: the master key.
        home: a folder for its state and its configuration file.
    """

    def __init__(
        self, models: Sequence[dict[str, Any]], *, key: str, home: Path, logs: Path
    ) -> None:
        self.config = {
            "model_list": list(models),
            "general_settings": {"master_key": "os.environ/SAGE_MASTER_KEY"},
        }
        file = home / "gateway.yaml"
        file.write_text(yaml.safe_dump(self.config))
        super().__init__(
            "gateway",
            [
                *(sys.executable, "-m", "sage_gateway", "--config", str(file)),
                *("--host", "127.0.0.1", "--port", "{port}"),
            ],
            ready="/ready",
            log=logs / "gateway.log",
            env={"SAGE_MASTER_KEY": key, "SAGE_HOME": str(home)},
        )


def prefect_server(home: Path, logs: Path) -> Server:
    """A Prefect server with an empty database in ``home``; its API is at ``url + "/api"``."""
    return Server(
        "Prefect server",
        [
            *(sys.executable, "-m", "prefect", "server", "start"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ],
        ready="/api/health",
        log=logs / "prefect-server.log",
        env={
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        },
    )


class DaskCluster(Server):
    """SAGE's local Dask cluster (``cluster.yaml``'s packaged default: two workers).

    Args:
        api_url: the Prefect server that tasks report to.
        home: for the cluster's state and what its workers spill.
    """

    def __init__(self, *, api_url: str, home: Path, logs: Path) -> None:
        self._ready_file = home / "scheduler-address"
        super().__init__(
            "Dask cluster",
            [
                *(sys.executable, "-m", "sage_prefect.orchestration.cluster_process"),
                *("--ready-file", str(self._ready_file), "--folder", str(home / "dask")),
            ],
            log=logs / "dask-cluster.log",
            env={"PREFECT_API_URL": api_url, "PREFECT_HOME": str(home), "SAGE_HOME": str(home)},
        )

    @property
    def address(self) -> str:
        """The scheduler's address."""
        return self._ready_file.read_text()

    def _is_ready(self, client: httpx.Client) -> bool:
        return self._ready_file.is_file()
