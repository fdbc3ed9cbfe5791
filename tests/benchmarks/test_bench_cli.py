"""``sage bench`` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sage_bench import registry
from sage_bench.cli import app
from sage_prefect.common.errors import SettingsError, UnknownNameError

runner = CliRunner()


def test_list_names_every_experiment() -> None:
    answer = runner.invoke(app, ["list"])
    assert answer.exit_code == 0
    for name in registry.names():
        assert name in answer.stdout


def test_every_experiment_can_be_called_as_a_function() -> None:
    from importlib import import_module

    for module, cls in registry.EXPERIMENTS.values():
        assert callable(import_module(module).run)
        assert getattr(import_module(module), cls).expectation


def test_unknown_names_list_the_known_ones() -> None:
    answer = runner.invoke(app, ["run", "import"])
    assert isinstance(answer.exception, UnknownNameError)
    assert "Did you mean 'imports'?" in str(answer.exception)
    for name in registry.names():
        assert name in str(answer.exception)


def test_options_need_a_value() -> None:
    answer = runner.invoke(app, ["run", "imports", "--set", "x"])
    assert isinstance(answer.exception, SettingsError)


def test_rounds_must_be_positive() -> None:
    assert runner.invoke(app, ["run", "imports", "--rounds", "0"]).exit_code == 2


@pytest.fixture
def light_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The imports experiment without its dear rows (each a second of prefect)."""
    from sage_bench.experiments import imports

    statements = {"import json": "import json", "import sage_prefect": "import sage_prefect"}
    monkeypatch.setattr(imports, "STATEMENTS", statements)
    monkeypatch.setattr(imports, "PEER", "import json")


@pytest.mark.usefixtures("light_imports")
def test_run_show_and_compare(tmp_path: Path) -> None:
    ran = runner.invoke(app, ["run", "imports", "--quick", "--out", str(tmp_path), "--check"])
    # Two rounds prove nothing: --check says so by its own exit code.
    assert ran.exit_code == 3, ran.output
    assert "UNPROVED" in ran.stdout
    assert "import json (A/A)" in ran.stdout
    (folder,) = (tmp_path / "imports").iterdir()
    assert str(folder) in ran.stdout
    shown = runner.invoke(app, ["show", str(folder)])
    assert shown.exit_code == 0
    assert shown.stdout == ran.stdout
    compared = runner.invoke(app, ["compare", str(folder), str(folder)])
    assert compared.exit_code == 0
    assert "no difference shown" in compared.stdout


@pytest.mark.usefixtures("light_imports")
def test_a_failed_claim_is_printed_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sage_bench.experiments import imports

    monkeypatch.setattr(imports, "HEAVY", ("sage_prefect",))
    arguments = ["run", "imports", "--rounds", "5", "--out", str(tmp_path)]
    assert runner.invoke(app, arguments).exit_code == 0
    checked = runner.invoke(app, [*arguments, "--check"])
    assert checked.exit_code == 1
    assert "FAIL" in checked.stdout
