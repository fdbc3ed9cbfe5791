"""The gateways that are compared, each started in its full form in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sage_bench.server import Server, free_port
from sage_bench.serving import Gateway
from sage_prefect import __version__
from sage_prefect.common.errors import BenchmarkError

SAGE = "sage"
CHAT_MODEL, EMBEDDING_MODEL = "m", "embedder"
# The newest release whose policy cache_aware asks one engine per request; later ones ask every
# engine to render the prompt first (docs/decisions/0011).
ROUTER_REQUIREMENT = "vllm-router==0.1.16"


@dataclass(frozen=True)
class Contestant:
    """A gateway and how to start a fresh process of it.

    Args:
        name: in the report.
        version: of its package.
        config: for the manifest.
        start: makes a server that is not running yet; its argument names the log.
        embeds: whether it serves ``/v1/embeddings`` here.
        slow: takes part in few cases only.
    """

    name: str
    version: str
    config: dict[str, Any]
    start: Callable[[str], Server]
    embeds: bool = True
    slow: bool = False


def sage(ports: Sequence[int], key: str, home: Path, logs: Path, window: int) -> Contestant:
    """This repository's gateway: key check, classification, the default policy, metrics."""
    models = [_entry(CHAT_MODEL, "chat", port, window) for port in ports]
    models.append(_entry(EMBEDDING_MODEL, "embedding", ports[0], window))

    def start(log: str) -> Server:
        folder = home / f"sage-{log}"
        folder.mkdir(exist_ok=True)
        gateway = Gateway(models, key=key, home=folder, logs=logs)
        gateway.log = logs / f"sage-{log}.log"
        return gateway

    return Contestant(SAGE, __version__, {"model_list": models}, start)


def vllm_router(python: str, ports: Sequence[int], logs: Path) -> Contestant:
    """The Rust ``vllm-router`` with policy ``cache_aware``, from the environment of ``python``.

    Raises:
        BenchmarkError: that interpreter has no ``vllm-router``.
    """
    version = _version(python, "vllm-router", ROUTER_REQUIREMENT)
    options = ["--policy", "cache_aware", "--log-level", "error"]
    name = f"vllm-router {version}"

    def start(log: str) -> Server:
        return Server(
            name,
            [
                *(python, "-m", "vllm_router.launch_router", "--host", "127.0.0.1"),
                *("--port", "{port}", "--prometheus-port", str(free_port()), *options),
                *("--worker-urls", *(f"http://127.0.0.1:{port}" for port in ports)),
            ],
            log=logs / f"vllm-router-{version}-{log}.log",
            start_timeout_s=60.0,
        )

    return Contestant(name, version, {"options": options, "workers": len(ports)}, start)


def nginx(program: str, ports: Sequence[int], home: Path, logs: Path) -> Contestant:
    """nginx as a reverse proxy that checks and decides nothing: the floor."""
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
    version = said.strip().rpartition("/")[2]

    def start(log: str) -> Server:
        folder = home / f"nginx-{log}"
        folder.mkdir(exist_ok=True)
        file = folder / "nginx.conf"
        server = Server(
            "nginx", [program, "-c", str(file), "-p", str(folder)], log=logs / f"nginx-{log}.log"
        )
        file.write_text(_nginx_config(server.port, ports))
        return server

    return Contestant("nginx", version, {"nginx.conf": _nginx_config(0, ports)}, start)


def litellm(python: str, ports: Sequence[int], key: str, home: Path, logs: Path) -> Contestant:
    """LiteLLM's proxy from the environment of ``python``.

    Raises:
        BenchmarkError: that interpreter has no LiteLLM.
    """
    version = _version(python, "litellm", "litellm[proxy]")
    config = {
        "model_list": [_entry(CHAT_MODEL, "chat", port, 64) for port in ports],
        "general_settings": {"master_key": key},
    }

    def start(log: str) -> Server:
        file = home / "litellm.yaml"
        file.write_text(yaml.safe_dump(config))
        return Server(
            "litellm",
            [
                *(str(Path(python).parent / "litellm"), "--config", str(file)),
                *("--host", "127.0.0.1", "--port", "{port}", "--telemetry", "False"),
            ],
            ready="/health/liveliness",
            log=logs / f"litellm-{log}.log",
            env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        )

    shown = {"model_list": config["model_list"]}
    return Contestant("litellm", version, shown, start, embeds=False, slow=True)


def find_nginx() -> str | None:
    """The program; Debian keeps it where users' PATH does not look."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def _entry(name: str, mode: str, port: int, window: int) -> dict[str, Any]:
    # A key of its own: LiteLLM refuses a deployment without one.
    return {
        "model_name": name,
        "litellm_params": {
            "model": f"openai/{name}",
            "api_base": f"http://127.0.0.1:{port}/v1",
            "api_key": "none",
        },
        "model_info": {"mode": mode, "engine": "vllm", "max_concurrency": window},
    }


def _version(python: str, package: str, requirement: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchmarkError(f"{python!r} cannot be run: {error.strerror}.") from None
    if done.returncode != 0:
        raise BenchmarkError(
            f"{python!r} has no package {package}.", hint=f"{python} -m pip install '{requirement}'"
        )
    return done.stdout.strip()


def _nginx_config(port: int, ports: Sequence[int]) -> str:
    servers = "\n".join(f"      server 127.0.0.1:{each};" for each in ports)
    who = "user root;" if os.geteuid() == 0 else ""
    return f"""{who}
worker_processes 1;
worker_rlimit_nofile 16384;
daemon off;
error_log stderr crit;
pid nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path client_body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream engines {{
{servers}
      keepalive 256;
      keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engines;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
