"""The whole local stack: ``sage up``, ``status``, ``down``, ``logs``, ``env``."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.markup import escape
from rich.table import Table

from sage_prefect.cli.console import console, seconds
from sage_prefect.common.errors import ServiceError

if TYPE_CHECKING:
    from sage_prefect.cli.interrupts import Started
    from sage_prefect.common.settings import Settings
    from sage_prefect.platform.service import ServiceState

# Repeated every few seconds; shown on one line that is overwritten.
_STILL_STARTING = re.compile(r": starting since ")
_COLOURS = {"ready": "green", "failed": "red", "unhealthy": "red", "stopped": "dim"}


def up(
    gateway_port: Annotated[
        int | None, typer.Option(help="Gateway port (an error if it is taken).")
    ] = None,
    prefect_port: Annotated[
        int | None, typer.Option(help="Prefect server port (an error if it is taken).")
    ] = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Also start a Prefect worker for deployments.")
    ] = False,
    policy: Annotated[str | None, typer.Option(help="Scheduling policy of the gateway.")] = None,
) -> None:
    """Start what is not running yet: Prefect, Dask, engines, gateway. Loopback only."""
    from sage_prefect.common.settings import load_settings

    settings = load_settings(
        {
            "gateway": {"port": gateway_port, "policy": policy},
            "prefect": {"port": prefect_port},
        }
    )
    start_stack(settings, worker=worker)
    _print_addresses()


def start_stack(
    settings: Settings, *, worker: bool = False, started: Started | None = None
) -> None:
    """Start the services that do not run, and note in ``started`` which ones those are.

    Raises:
        ServiceError: one failed (the others run), or a chosen port is taken.
    """
    from sage_prefect.cli.stack import stack_specs
    from sage_prefect.platform.supervisor_client import SupervisorClient

    client = SupervisorClient.connect()
    specs = stack_specs(settings, worker=worker)
    running = {state.name for state in client.list() if state.status in ("ready", "unhealthy")}
    missing = [spec for spec in specs if spec.name not in running]
    if not missing:
        console.print(f"services: all {len(specs)} run already")
        return
    if started is not None:
        started.names += [spec.name for spec in missing]
    console.print(f"services: starting {', '.join(spec.name for spec in missing)}")
    begun = time.monotonic()
    with console.status("starting ...") as waiting:

        def show(news: str) -> None:
            if _STILL_STARTING.search(news):
                waiting.update(escape(news[: console.width - 4]))
            else:
                console.print(f"  [dim]{time.monotonic() - begun:5.1f} s[/dim]  {escape(news)}")

        client.start_many(missing, on_progress=show)


def down(
    names: Annotated[
        list[str] | None, typer.Argument(help="Services to stop; none: all, and the supervisor.")
    ] = None,
) -> None:
    """Stop all services (or the named ones) and leave no process behind."""
    from sage_prefect.platform.processes import end_strays
    from sage_prefect.platform.supervisor_client import SupervisorClient, SupervisorNotRunning

    try:
        client = SupervisorClient.connect(start=False)
    except SupervisorNotRunning:
        client = None
    if names:
        if client is None:
            raise SupervisorNotRunning
        for state in client.stop(*names, on_progress=_say):
            console.print(f"{state.name}: {state.status}")
        return
    if client is not None:
        client.shutdown(on_progress=_say)
    strays = end_strays()
    if strays:
        console.print(f"ended {strays} process(es) that a killed supervisor had left")
    console.print("nothing runs" if client is None and not strays else "all services stopped")


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what runs, where, since when, healthy or not. Exit code 1 if anything is not healthy."""
    from sage_prefect.platform.supervisor_client import (
        SupervisorClient,
        SupervisorNotRunning,
        recorded_states,
    )

    try:
        states: Sequence[ServiceState] = SupervisorClient.connect(start=False).list()
        running = True
    except SupervisorNotRunning:
        states, running = recorded_states(), False
    if as_json:
        entries = [{**s.model_dump(mode="json"), "uptime_s": s.uptime_s} for s in states]
        content = {"supervisor": "running" if running else "stopped", "services": entries}
        typer.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
    elif not states:
        console.print("nothing runs; start with `sage up` or `sage demo`")
    else:
        console.print(_table(states))
        for state in states:
            if state.detail and state.status != "ready":
                console.print(f"{state.name}: {state.detail}")
    unwell = [s for s in states if s.status not in ("ready", "stopped")]
    if unwell or not running:
        raise typer.Exit(1)


def logs(
    name: Annotated[str, typer.Argument(help="Service name, as `sage status` shows it.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many.")] = 50,
) -> None:
    """Print the last lines of a service's log."""
    from sage_prefect.platform import service_logs

    file = service_logs.log_file(name)
    if not file.is_file():
        known = sorted(path.stem for path in file.parent.glob("*.log"))
        raise ServiceError(
            f"service {name!r} has no log.", hint=f"Known: {', '.join(known) or 'none'}."
        )
    for line in service_logs.tail(name, lines):
        typer.echo(line)


def env() -> None:
    """Print shell exports for the running stack: eval "$(sage env)" before `prefect deploy`."""
    from sage_prefect.common.endpoints import lookup
    from sage_prefect.common.keys import key_file

    for variable, value in client_environment().items():
        typer.echo(f"export {variable}={shlex.quote(value)}")
    gateway = lookup("gateway")
    if gateway:
        typer.echo(f"export OPENAI_BASE_URL={shlex.quote(gateway + '/v1')}")
        # The key itself is not printed: terminals and logs keep what they see.
        typer.echo(f'export OPENAI_API_KEY="$(cat {shlex.quote(str(key_file()))})"')


def client_environment() -> dict[str, str]:
    """What a process needs to reach the running Prefect server.

    Raises:
        ServiceError: no Prefect server runs.
    """
    from sage_prefect.orchestration.services import connect_env

    return connect_env()


def _table(states: Sequence[ServiceState]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("service", "status", "address", "pid", "up", "restarts", "models"):
        table.add_column(column, overflow="fold")
    for state in states:
        colour = _COLOURS.get(state.status, "yellow")
        table.add_row(
            state.name,
            f"[{colour}]{state.status}[/{colour}]",
            state.url or "-",
            str(state.pid or "-"),
            seconds(state.uptime_s if state.pid else None),
            str(state.restarts),
            ", ".join(state.models),
        )
    return table


def _print_addresses() -> None:
    from sage_prefect.cli.stack import addresses

    for label, url in addresses().items():
        console.print(f"{label:<16} {url}")


def _say(news: str) -> None:
    console.print(f"  {news}")
