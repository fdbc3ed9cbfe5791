"""The ``sage`` command.

Command modules are light: what they need (Prefect, Dask, the gateway, engines) is imported inside
the commands, so that ``sage --help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sage_prefect import __version__
from sage_prefect.cli import chat, config, doctor, embedding, gateway, llm, models
from sage_prefect.cli.console import print_error
from sage_prefect.cli.demo import demo
from sage_prefect.cli.lifecycle import down, env, logs, status, up
from sage_prefect.cli.management import engines, keys, policy, tenants
from sage_prefect.common.errors import SageError

app = typer.Typer(
    name="sage",
    help="LLM pipelines on Prefect and Dask, and the gateway that serves their models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(up)
app.command()(status)
app.command()(down)
app.command()(logs)
app.command()(env)

app.command()(chat.chat)
app.command()(doctor.doctor)
app.add_typer(gateway.app, name="gateway")
app.add_typer(llm.app, name="llm")
app.add_typer(embedding.app, name="embedding")
app.add_typer(models.app, name="models")
app.add_typer(engines.app, name="engines")
app.add_typer(policy.app, name="policy")
app.add_typer(tenants.app, name="tenants")
app.add_typer(keys.app, name="keys")
app.add_typer(config.app, name="config")


def _bench(context: typer.Context) -> None:
    from sage_bench.cli import app as bench

    # sage_bench has options of its own: hand the rest of the line to it.
    command = typer.main.get_command(bench)
    command.main(args=context.args, prog_name="sage bench", standalone_mode=False)


app.command(
    "bench",
    help="Run and compare benchmarks (sage bench --help).",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(_bench)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sage-prefect {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """LLM pipelines on Prefect and Dask, and the gateway that serves their models."""


def main(args: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 fine, 1 failed, 2 wrong use, 130 interrupted."""
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    command = typer.main.get_command(app)
    try:
        result = command.main(args=args, prog_name="sage", standalone_mode=False)
    except SageError as error:
        print_error(error)
        return 1
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("interrupted", err=True)
        return 130
    except typer.Exit as finished:
        return int(finished.exit_code)
    except Exception as error:
        # Wrong use: typer carries its own copy of click, whose classes are not public.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        raise
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
