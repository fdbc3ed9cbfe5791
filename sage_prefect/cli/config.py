"""``sage config``: every setting, its value and who set it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from sage_prefect.cli.console import console
from sage_prefect.common import paths
from sage_prefect.common.settings import (
    Settings,
    load_with_sources,
    settings_files,
    variable_of,
)

app = typer.Typer(help="Show the settings and where they come from.", no_args_is_help=True)


@app.command()
def show(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per setting.")] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only what differs from the defaults.")
    ] = False,
) -> None:
    """Print every setting: value, where it came from, and the variable that sets it."""
    from rich.table import Table

    settings, sources = load_with_sources()
    rows = [
        {
            "setting": ".".join(path),
            "value": str(value) if isinstance(value, Path) else value,
            "source": sources.get(path, "default"),
            "variable": variable_of(path),
        }
        for path, value in leaves(settings)
        if not changed or path in sources
    ]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    table = Table("setting", "value", "source", "variable", box=None, pad_edge=False)
    for row in rows:
        value = "-" if row["value"] is None else str(row["value"])
        table.add_row(str(row["setting"]), value, str(row["source"]), str(row["variable"]))
    console.print(table)


@app.command()
def path() -> None:
    """Print the files and folders that SAGE uses; marks the settings files that exist."""
    from sage_prefect.common.keys import key_file

    user, project = settings_files()
    for name, file in (("user settings", user), ("project settings", project.absolute())):
        console.print(f"{name:<17}{file}{'' if file.is_file() else '  (not there)'}")
    console.print(f"{'master key':<17}{key_file()}")
    for name in ("config", "data", "state", "cache", "log"):
        console.print(f"{name:<17}{getattr(paths, f'{name}_dir')()}")


def leaves(section: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of every setting, sections in order.

    >>> dict(leaves(Settings()))["gateway", "host"]
    '127.0.0.1'
    """
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value
