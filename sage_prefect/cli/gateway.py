"""``sage gateway``: the gateway in the foreground."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

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
        announce=functools.partial(print, flush=True),
    )
