"""``sage tenants``: who shares a running gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from sage_prefect.cli.management.client import AsJson, ManagementClient, Url, print_json
from sage_prefect.cli.management.rights import (
    Bands,
    Models,
    Parallel,
    Rpm,
    Tpm,
    rights,
    shown_rights,
)

app = typer.Typer(help="Tenants of a running gateway.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the tenant.")]


@app.command("list")
def list_tenants(url: Url = None, as_json: AsJson = False) -> None:
    """List the tenants: those of the configuration file, and those made at run time."""
    from rich.table import Table

    from sage_prefect.cli.console import console

    tenants = ManagementClient(url).get("tenants")["tenants"]
    if as_json:
        print_json(tenants)
        return
    if not tenants:
        console.print("no tenant; `sage tenants create` makes one")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("tenant", "weight", "bands", "models", "limits", "made by"):
        table.add_column(column)
    for tenant in tenants:
        table.add_row(
            tenant["name"],
            f"{tenant['weight']:g}",
            ", ".join(tenant["bands"]),
            ", ".join(tenant["models"]) or "all",
            shown_rights(tenant),
            "the file" if tenant["origin"] == "config" else "the API",
        )
    console.print(table)


@app.command("create")
def create(
    name: Name,
    weight: Annotated[float, typer.Option(help="Share of engine time beside others.")] = 1.0,
    band: Bands = None,
    model: Models = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    parallel: Parallel = None,
    max_queued: Annotated[
        int | None, typer.Option(min=0, help="Requests that wait for an engine.")
    ] = None,
    max_running: Annotated[int | None, typer.Option(min=0, help="Requests inside engines.")] = None,
    url: Url = None,
) -> None:
    """Make a tenant, or change the one of that name: all of it is said anew."""
    body = {
        "name": name,
        "weight": weight,
        "max_queued": max_queued,
        "max_running": max_running,
        **rights(band, model, rpm, tpm, parallel),
    }
    ManagementClient(url).post("tenants", body=body)
    typer.echo(f"{name}: there; `sage keys create {name}` makes a key")


@app.command("remove")
def remove(name: Name, url: Url = None) -> None:
    """Forget a tenant and revoke its keys."""
    said = ManagementClient(url).delete("tenants", name)
    typer.echo(f"{name}: removed, {len(said['revoked'])} keys revoked")
