"""``sage policy``: the scheduling policy of a running gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from sage_prefect.cli.management.client import AsJson, ManagementClient, Url, print_json

app = typer.Typer(help="The scheduling policy of a running gateway.", no_args_is_help=True)


@app.command("get")
def get(url: Url = None, as_json: AsJson = False) -> None:
    """Show the policy and the known ones."""
    said = ManagementClient(url).get("policy")
    if as_json:
        print_json(said)
        return
    typer.echo(f"{said['policy']} (known: {', '.join(said['known'])})")


@app.command("set")
def set_policy(
    policy: Annotated[str, typer.Argument(help="Name of the policy.")], url: Url = None
) -> None:
    """Switch the policy; queued requests keep their place."""
    said = ManagementClient(url).put("policy", body={"policy": policy})
    typer.echo(said["policy"])
