"""``sage doctor``: what is right and wrong with this machine and this installation."""

from __future__ import annotations

from typing import Annotated

import typer

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check toolchain, packages, models, engines, GPUs, ports, disk. Exit code 1 on any FAIL."""
    from dataclasses import asdict

    import orjson
    from rich.text import Text

    from sage_prefect.cli.console import console
    from sage_prefect.platform.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if as_json:
            continue
        line = Text.assemble(
            (f"{finding.status:<5}", _COLOURS[finding.status]),
            f"{finding.check:<30}{finding.detail}",
        )
        console.print(line)
        if finding.hint and finding.status != "OK":
            console.print(f"     -> {finding.hint}", markup=False)
    failed = sum(finding.status == "FAIL" for finding in findings)
    if as_json:
        rows = [asdict(finding) for finding in findings]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
    else:
        warned = sum(finding.status == "WARN" for finding in findings)
        console.print(f"{len(findings)} checks: {failed} failed, {warned} warnings")
    if failed:
        raise typer.Exit(1)
