"""``sage gateway``: the gateway in the foreground."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from sage_prefect import __version__
from sage_prefect.cli.management.client import AsJson, ManagementClient, Url, print_json

app = typer.Typer(help="The OpenAI-compatible gateway.", no_args_is_help=True)


@app.callback()
def gateway() -> None:
    """The OpenAI-compatible gateway."""


@app.command("start")
def start(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A gateway.yaml; none: engines register later."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; none: 8888 or the next free one; 0: any."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Scheduling policy; none: the configuration's."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option("--record", help="Event log to write; none: the configuration's."),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Ask for no key (loopback only).")
    ] = False,
) -> None:
    """Run the gateway in the foreground until Ctrl-C."""
    try:
        from sage_gateway.server import serve
    except ModuleNotFoundError as error:
        from sage_prefect.common.errors import MissingDependencyError

        raise MissingDependencyError(error.name or "uvicorn", "gateway", "The gateway") from error
    from sage_prefect.common.logs import configure_logging
    from sage_prefect.common.settings import load_settings

    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    serve(
        config,
        host=host,
        port=port,
        policy=policy,
        no_auth=no_auth,
        record=record,
        announce=functools.partial(print, flush=True),
    )


@app.command("reload")
def reload(url: Url = None, as_json: AsJson = False) -> None:
    """Have a running gateway read its configuration file again: all of it, or nothing."""
    said = ManagementClient(url).post("reload")
    if as_json:
        print_json(said)
        return
    engines = said["engines"]
    for what in ("added", "changed", "removed"):
        if engines[what]:
            typer.echo(f"engines {what}: {', '.join(engines[what])}")
    if said["policy"]:
        typer.echo(f"policy: {said['policy']}")
    for warning in said["warnings"]:
        typer.echo(f"warning: {warning}")
    typer.echo("reloaded")


@app.command("state")
def state(url: Url = None, as_json: AsJson = False) -> None:
    """Show what a running gateway is doing."""
    said = ManagementClient(url).get("state")
    if as_json:
        print_json(said)
        return
    typer.echo(f"version {said['version']}, policy {said['policy']}")
    typer.echo(f"configuration: {said['config_file'] or 'none'}")
    typer.echo(f"requests: {said['queued']} wait ({said['queued_bytes']} bytes), ", nl=False)
    typer.echo(f"{said['running']} run")
    for engine in said["engines"]:
        window = f"{engine['in_flight']}/{engine['max_concurrency']}"
        typer.echo(f"engine {engine['name']}: {engine['state']}, {window}")
    for limit in said["limits"]:
        left = ", ".join(
            f"{limit[key]:.0f} {unit} left"
            for key, unit in (("requests_left", "requests"), ("tokens_left", "tokens"))
            if limit[key] is not None
        )
        typer.echo(f"{limit['who']}: {limit['running']} run{', ' if left else ''}{left}")


@app.command("explain")
def explain(
    request_id: Annotated[str, typer.Argument(help="The answer's x-request-id.")],
    url: Url = None,
) -> None:
    """Show what was decided about a request, and why."""
    print_json(ManagementClient(url).get("explain", request_id))


@app.command("replay")
def replay(
    log: Annotated[Path, typer.Argument(help="An event log that a gateway has recorded.")],
) -> None:
    """Feed a recorded log to a fresh control plane and compare its decisions."""
    from sage_prefect.platform.event_log import read_log
    from sage_prefect.platform.event_log import replay as replay_log
    from sage_prefect.platform.recorded_manager import manager_of

    recorded = read_log(log)
    result = replay_log(recorded, lambda: manager_of(recorded.header.settings))
    if recorded.torn:
        typer.echo("The last line is half-written, as after a crash; it was left out.")
    if result.difference is None:
        typer.echo(f"identical: {result.steps} steps")
        return
    typer.echo(f"{result.steps} steps are identical, then")
    typer.echo(str(result.difference))
    recorded_by = recorded.header.settings.get("sage")
    if recorded_by != __version__:
        typer.echo(f"It was recorded by SAGE {recorded_by}; this is {__version__}.")
    raise typer.Exit(1)
