"""quickstart.sh and manage.sh: what they say when something is missing or mistyped."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_script(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / command[0]), *command[1:]],
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_needs_nothing() -> None:
    done = run_script("quickstart.sh", "--help", PATH="/usr/bin:/bin")
    assert done.returncode == 0
    for option in ("--no-demo", "--uv", "--python", "--gpu", "--dev", "--force"):
        assert option in done.stdout
    assert "CPU build" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environ", "error", "hint"),
    [
        (["--bogus"], {}, "unknown option '--bogus'", "--help"),
        (["--python"], {}, "--python needs a path", "For example"),
        (["--python", "/no/such/python"], {}, "no '/no/such/python'", "that exists"),
        (["--python", "/bin/true"], {}, "not Python 3.10 to 3.13", "--version"),
        (["--python", "/bin/false"], {}, "not Python 3.10 to 3.13", "--version"),
        (
            [],
            {"CXX": "/no/such/c++"},
            "'/no/such/c++' cannot build C++20",
            "apt-get install -y g++",
        ),
    ],
)
def test_quickstart_names_the_step_and_the_way_out(
    arguments: list[str], environ: dict[str, str], error: str, hint: str
) -> None:
    done = run_script("quickstart.sh", "--no-demo", *arguments, **environ)
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert error in done.stderr.partition("error: ")[2]
    assert hint in done.stderr.partition("hint: ")[2]


def test_manage_lists_its_verbs() -> None:
    done = run_script("manage.sh")
    assert done.returncode == 0
    for verb in ("test", "lint", "types", "docs", "bench", "summary", "build", "lock", "clean"):
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["tset"], "unknown verb 'tset'"), (["clean", "--everything"], "unknown option")],
)
def test_manage_refuses_what_it_does_not_know(arguments: list[str], message: str) -> None:
    done = run_script("manage.sh", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
