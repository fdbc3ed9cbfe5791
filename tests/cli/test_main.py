"""Exit codes and error texts of the ``sage`` command."""

from __future__ import annotations

import re

import pytest
import typer

from sage_prefect import __version__
from sage_prefect.cli import main as cli
from sage_prefect.cli.console import seconds
from sage_prefect.common.errors import SettingsError


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"sage-prefect {__version__}"


def test_unknown_command_is_wrong_use(capsys):
    assert cli.run(["frobnicate"]) == 2
    assert "No such command 'frobnicate'" in capsys.readouterr().err


def test_unknown_option_is_wrong_use(capsys):
    assert cli.run(["status", "--colour"]) == 2
    assert "--colour" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (SettingsError("port 'x' is no port.", hint="Use a number."), 1, "port 'x' is no port"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, "interrupted"),
        (typer.Exit(3), 3, ""),
    ],
)
def test_how_a_command_ends(monkeypatch, capsys, raised, code, words):
    app = typer.Typer()

    @app.command()
    def fails() -> None:
        raise raised

    @app.command()
    def other() -> None: ...

    monkeypatch.setattr(cli, "app", app)
    assert cli.run(["fails"]) == code
    assert words in capsys.readouterr().err


def test_errors_show_their_hint(monkeypatch, capsys):
    app = typer.Typer()

    @app.command()
    def fails() -> None:
        raise SettingsError("[bold] is not a key.", hint="Remove it.")

    @app.command()
    def other() -> None: ...

    monkeypatch.setattr(cli, "app", app)
    cli.run(["fails"])
    shown = capsys.readouterr().err
    assert "error: [bold] is not a key." in shown  # not taken for markup
    assert re.search(r"hint:\s+Remove it\.", shown)


def test_an_unknown_failure_is_not_hidden(monkeypatch):
    app = typer.Typer()

    @app.command()
    def fails() -> None:
        raise ZeroDivisionError

    @app.command()
    def other() -> None: ...

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(ZeroDivisionError):
        cli.run(["fails"])


def test_bench_is_handed_its_own_options(capsys):
    assert cli.run(["bench", "list"]) == 0
    assert "imports" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.84, "0.8 s"),
        (42.4, "42 s"),
        (185, "3 min 5 s"),
        (59.7, "1 min 0 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_seconds(value, text):
    assert seconds(value) == text
