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
from sage_prefect.common.settings import load_with_sources, settings_files, variable_of

app = typer.Typer(help="Show the settings and where they come from.", no_args_is_help=True)


@app.command()
def show(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per setting.")] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only what differs from the defaults.")
    ] = False,
) -> None:
    """Print every setting: value, where it came from, and the variable that sets it."""
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
    # Plain columns, never cut: the output is as good for grep as for eyes.
    cells: list[tuple[str, ...]] = [("setting", "value", "source", "variable")]
    cells += [tuple("-" if cell is None else str(cell) for cell in row.values()) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    for cell_row in cells:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(cell_row, widths, strict=True))
        typer.echo(line.rstrip())


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

    >>> from sage_prefect.common.settings import Settings
    >>> dict(leaves(Settings()))["gateway", "host"]
    '127.0.0.1'
    """
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value
