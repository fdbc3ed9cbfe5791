"""``sage gateway``: the gateway in the foreground."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from sage_prefect import __version__

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
