"""What ``sage llm`` and ``sage embedding`` share: start, list and stop a supervised engine."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from sage_prefect.platform.engines.base import EngineOptions
    from sage_prefect.platform.service import ServiceSpec, ServiceState


def options(api_key_env: str | None = None, **chosen: Any) -> EngineOptions:
    """Options of an engine: what the command line says over what the settings say.

    Raises:
        SettingsError: a value is wrong, or ``api_key_env`` names an unset variable.
    """
    from sage_prefect.common.errors import SettingsError
    from sage_prefect.common.settings import load_settings
    from sage_prefect.platform.engines.base import EngineOptions

    settings = load_settings({"engines": {"device": chosen.pop("device", None)}}).engines
    defaults: dict[str, Any] = {
        "slots": settings.llm_slots,
        "context": settings.llm_context,
        "device": settings.device,
        "start_timeout_s": settings.start_timeout_s,
    }
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise SettingsError(
                f"environment variable {api_key_env!r} (--api-key-env) is not set.",
                hint=f"Run: export {api_key_env}=...",
            )
        defaults["api_key"] = key
    return EngineOptions(**{**defaults, **{k: v for k, v in chosen.items() if v is not None}})


def serve(spec: ServiceSpec, *, replace: bool, foreground: bool) -> None:
    """Start ``spec`` and print where it is; in the foreground, follow it until Ctrl-C.

    Raises:
        ServiceError: it did not start, or ended while it was followed.
    """
    from sage_prefect.cli.interrupts import stopping_on_interrupt
    from sage_prefect.platform.supervisor_client import SupervisorClient

    client = SupervisorClient.connect()
    before = client.get(spec.name)
    with stopping_on_interrupt() as started:
        if before is None or before.status not in ("ready", "unhealthy"):
            started.names.append(spec.name)
        state = client.start(spec, on_progress=_say, replace=replace)
    models = ", ".join(state.models)
    known = "known to the gateway" if state.registered else "no gateway runs"
    base_url = spec.engine.base_url if spec.engine and not state.ports else f"{state.url}/v1"
    typer.echo(f"{state.name}: {state.status}, {base_url}, models {models}; {known}")
    if foreground:
        _follow(state)


def show(mode: Literal["chat", "embedding"]) -> None:
    """Print the engines of chat models, or all others (rerankers stand with embeddings)."""
    from rich.table import Table

    from sage_prefect.cli.console import console, seconds
    from sage_prefect.platform.registry import read_registry
    from sage_prefect.platform.supervisor_client import (
        SupervisorClient,
        SupervisorNotRunning,
        recorded_states,
    )

    try:
        states = SupervisorClient.connect(start=False).list()
    except SupervisorNotRunning:
        states = recorded_states()
    specs = {name: record.spec for name, record in read_registry().services.items()}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("engine", "driver", "status", "address", "up", "gateway", "models"):
        table.add_column(column)
    for state in states:
        spec = specs.get(state.name)
        if (
            spec is None
            or spec.engine is None
            or (spec.engine.models[0].mode == "chat") != (mode == "chat")
        ):
            continue
        table.add_row(
            state.name,
            state.driver or "-",
            state.status,
            state.url or (spec.engine.base_url if not spec.command else "-"),
            seconds(state.uptime_s if state.pid else None),
            "yes" if state.registered else "no",
            ", ".join(state.models),
        )
    if not table.row_count:
        command = "llm" if mode == "chat" else "embedding"
        console.print(f"no engine of this kind; start one with `sage {command} serve MODEL`")
        return
    console.print(table)


def stop(name: str) -> None:
    """Stop an engine.

    Raises:
        ServiceError: there is none of this name.
    """
    from sage_prefect.common.errors import ServiceError
    from sage_prefect.platform.supervisor_client import SupervisorClient

    client = SupervisorClient.connect(start=False)
    state = client.get(name)
    if state is None or state.kind != "engine":
        engines = ", ".join(s.name for s in client.list() if s.kind == "engine") or "none"
        raise ServiceError(f"no engine {name!r} runs.", hint=f"Engines: {engines}.")
    client.stop(name, on_progress=_say)


def _follow(state: ServiceState) -> None:
    from sage_prefect.common.errors import ServiceError
    from sage_prefect.platform.supervisor_client import SupervisorClient

    client = SupervisorClient.connect()
    # A service manager ends a foreground command with SIGTERM: the engine goes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        typer.echo("Ctrl-C stops it")
        with open(state.log_file or os.devnull, encoding="utf-8", errors="replace") as log:
            log.seek(0, os.SEEK_END)
            while True:
                for line in log:
                    typer.echo(line.rstrip())
                current = client.get(state.name)
                if current is None or current.status in ("failed", "stopped"):
                    raise ServiceError(
                        f"engine {state.name!r} ended: "
                        f"{current.detail if current else 'somebody stopped it'}"
                    )
                time.sleep(0.5)
    except KeyboardInterrupt:
        client.stop(state.name, on_progress=_say)


def _say(news: str) -> None:
    typer.echo(f"  {news}")
