"""What is made from the code is current, and nothing that users meet is undocumented."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sage_prefect.common.ports import SagePorts
from sage_prefect.common.settings import NOT_SETTINGS

ROOT = Path(__file__).parents[2]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()
COMMANDS = dict(generate.commands(generate.command_tree()))


@pytest.mark.parametrize("name", ["cli.md", "configuration.md"])
def test_a_generated_document_is_current(name: str) -> None:
    made = {file.name: content for file, content in generate.documents().items()}
    assert (ROOT / "docs" / name).read_text() == made[name], "run ./manage.sh docs --write"


@pytest.mark.parametrize("path", COMMANDS)
def test_a_command_and_its_options_have_help(path: str) -> None:
    command: Any = COMMANDS[path]
    assert (command.help or "").strip(), f"{path} has no help"
    bare = [
        param.name
        for param in command.params
        if param.name != "help" and not getattr(param, "help", None)
    ]
    assert not bare, f"{path}: no help for {bare}"
    assert f"# {path}\n" in (ROOT / "docs" / "cli.md").read_text()


def test_every_variable_is_documented() -> None:
    ports = {port.variable for port in SagePorts}
    assert set(generate.VARIABLES) == NOT_SETTINGS - ports


def test_every_setting_says_what_it_means() -> None:
    for line in generate.settings_table().splitlines():
        if line.startswith("| `"):
            meaning = line.split(" | ")[3]
            assert len(meaning) > 10, line


def test_the_written_exit_codes_hold(capsys: pytest.CaptureFixture[str]) -> None:
    from sage_prefect.cli.main import run

    assert run(["config", "show"]) == 0
    assert run(["config", "show", "--no-such-option"]) == 2
    assert run(["no-such-command"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_settings_error_exits_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sage_prefect.cli.main import run

    monkeypatch.setenv("SAGE_GATEWY__PORT", "1")
    assert run(["config", "show"]) == 1
    written = capsys.readouterr().err
    assert "error:" in written
    assert "SAGE_GATEWAY" in written.split("hint:")[1]
