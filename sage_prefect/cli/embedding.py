"""``sage embedding``: serve embedding models, supervised and known to the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from sage_prefect.cli import engines

app = typer.Typer(help="Serve embedding models: serve, list, stop.", no_args_is_help=True)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A model of `sage models list`, or a path.")],
    port: Annotated[
        int | None, typer.Option(help="Port (an error if it is taken); none: 8090 or the next.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Service name; none: the model's.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an engine of this name.")
    ] = False,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Follow its log; Ctrl-C stops it.")
    ] = False,
) -> None:
    """Start an embedding engine, supervise it, and register it with the gateway."""
    from sage_prefect.platform.engines.choice import embedding_service

    options = engines.options(device=device)
    spec = embedding_service(model, name=name, port=port, options=options)
    engines.serve(spec, replace=replace, foreground=foreground)


@app.command("list")
def list_engines() -> None:
    """List the embedding engines of this machine."""
    engines.show("embedding")


@app.command()
def stop(name: Annotated[str, typer.Argument(help="As `sage embedding list` shows it.")]) -> None:
    """Take an engine from the gateway, let it finish its requests, and stop it."""
    engines.stop(name)
