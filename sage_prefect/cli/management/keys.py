"""``sage keys``: what tenants show a running gateway."""

from __future__ import annotations

import datetime
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
    seconds_of,
    shown_rights,
)

app = typer.Typer(help="Keys of a running gateway's tenants.", no_args_is_help=True)


@app.command("create")
def create(
    tenant: Annotated[str, typer.Argument(help="Whose key it is.")],
    name: Annotated[str, typer.Option(help="For people.")] = "",
    band: Bands = None,
    model: Models = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    parallel: Parallel = None,
    expires: Annotated[
        str | None, typer.Option(help="After so long it opens nothing, such as 30d; none: never.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: it is shown this once."""
    body = {"tenant": tenant, "name": name, **rights(band, model, rpm, tpm, parallel)}
    if expires is not None:
        body["expires_in_s"] = seconds_of(expires)
    made = ManagementClient(url).post("keys", body=body)
    if as_json:
        print_json(made)
        return
    typer.echo(made["key"])
    # The key alone on standard output: KEY=$(sage keys create ...)
    typer.echo(f"{made['id']}: of tenant {tenant}; it is not shown again", err=True)


@app.command("list")
def list_keys(url: Url = None, as_json: AsJson = False) -> None:
    """List the keys that were made at run time."""
    from rich.table import Table

    from sage_prefect.cli.console import console

    keys = ManagementClient(url).get("keys")["keys"]
    if as_json:
        print_json(keys)
        return
    if not keys:
        console.print("no key; `sage keys create TENANT` makes one")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("key", "name", "tenant", "state", "made", "expires", "models", "limits"):
        table.add_column(column)
    for key in keys:
        table.add_row(
            key["id"],
            key["name"] or "-",
            key["tenant"],
            key["state"],
            _day(key["created_at"]),
            _day(key["expires_at"]),
            ", ".join(key["models"]) or "the tenant's",
            shown_rights(key),
        )
    console.print(table)


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, as `sage keys list` shows it.")],
    url: Url = None,
) -> None:
    """Revoke a key: it opens nothing from now on."""
    said = ManagementClient(url).delete("keys", key)
    stored = "" if said["stored"] else "; it could not be stored yet, the gateway tries again"
    typer.echo(f"{key}: revoked{stored}")


def _day(at: float | None) -> str:
    if at is None:
        return "never"
    return datetime.datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")
