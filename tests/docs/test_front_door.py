"""What README shows against a running stack, run against a running stack, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAGE = (sys.executable, "-m", "sage_prefect.cli.main")
BLOCKS = re.findall(
    r"<!-- test: stack -->\n```(\w+)\n(.*?)```",
    (ROOT / "README.md").read_text(encoding="utf-8"),
    flags=re.DOTALL,
)

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Path]]:
    """The environment that ``sage env`` prints for a stack of our own, and a folder to work in."""
    folder = tmp_path_factory.mktemp("front-door")
    (folder / "docs").symlink_to(ROOT / "docs")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("SAGE_", "PREFECT_"))}
    environ["SAGE_HOME"] = str(folder / "home")
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    try:
        subprocess.run([*SAGE, "up"], env=environ, check=True, timeout=400)
        printed = subprocess.run(
            ["bash", "-c", 'eval "$(sage env)" && env -0'],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        yield dict(line.split("=", 1) for line in printed.split("\0") if "=" in line), folder
    finally:
        subprocess.run([*SAGE, "down"], env=environ, check=True, timeout=120)


@pytest.mark.parametrize(
    ("language", "text"), BLOCKS, ids=[f"{i}-{block[0]}" for i, block in enumerate(BLOCKS)]
)
def test_readme_block(language: str, text: str, stack: tuple[dict[str, str], Path]) -> None:
    environ, folder = stack
    if language == "python":
        (folder / "block.py").write_text(text)
    command = [sys.executable, "block.py"] if language == "python" else ["bash", "-euc", text]
    done = subprocess.run(
        command, env=environ, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "it printed nothing"
    if "curl" in text:
        assert '"choices"' in done.stdout, done.stdout
    if "embeddings.create" in text:
        assert "2 vectors of 384 numbers" in done.stdout


def test_readme_shows_all_of_it() -> None:
    assert [language for language, _ in BLOCKS] == ["sh", "python", "python", "python"]
