"""README and docs/: the code in them compiles or runs, commands and links exist.

A fenced block is compiled (python) or checked against the real options (sh). The comment
``<!-- test: run -->`` above it makes it run here; ``<!-- test: stack -->`` makes it run against the
whole stack in tests/e2e.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DIAGRAMS = {"flowchart", "sequenceDiagram", "stateDiagram-v2", "classDiagram"}


@dataclass(frozen=True)
class Block:
    """A fenced code block, and what the comment above it says."""

    file: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def id(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks_of(file: Path) -> list[Block]:
    found = []
    lines = file.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"^(\s*)```(\w*)\s*$", lines[number])
        if not fence:
            number += 1
            continue
        start = number
        mark = re.match(r"^\s*<!-- test: (.+) -->\s*$", lines[start - 1] if start else "")
        number += 1
        while lines[number].strip() != "```":
            number += 1
        text = "\n".join(line[len(fence[1]) :] for line in lines[start + 1 : number]) + "\n"
        found.append(Block(file, start + 1, fence[2], text, mark[1] if mark else ""))
        number += 1
    return found


BLOCKS = [block for file in DOCUMENTS for block in blocks_of(file)]


def blocks(*languages: str, mark: str | None = None) -> Any:
    """Parametrises a test over the blocks in these languages."""
    chosen = [
        pytest.param(block, id=block.id)
        for block in BLOCKS
        if block.language in languages and mark in (None, block.mark)
    ]
    return pytest.mark.parametrize("block", chosen)


# -- code ---------------------------------------------------------------------------------


def test_marks_are_known() -> None:
    assert {block.mark for block in BLOCKS} <= {"", "run", "stack"}


@blocks("python")
def test_python_compiles(block: Block) -> None:
    compile("\n" * block.line + block.text, str(block.file), "exec")


@blocks("python", mark="run")
def test_python_runs(block: Block, tmp_path: Path, sage_home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        cwd=tmp_path,
        env={**os.environ, "SAGE_HOME": str(sage_home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@blocks("yaml")
def test_yaml_parses(block: Block) -> None:
    assert list(yaml.safe_load_all(block.text))


@blocks("json")
def test_json_parses(block: Block) -> None:
    json.loads(block.text)


@blocks("mermaid")
def test_diagrams_name_their_kind(block: Block) -> None:
    assert block.text.split()[0] in DIAGRAMS
    assert block.text.count("subgraph ") == len(re.findall(r"^\s*end\s*$", block.text, re.M)) or (
        block.text.startswith("sequenceDiagram")
    )


# -- commands -----------------------------------------------------------------------------


def commands_of(text: str) -> list[list[str]]:
    """The command lines of a shell block, continuation lines joined, pipes split."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s(?:\||&&|;)\s", line.removeprefix("$ ")):
            # The rest of a quotation that spans lines, a here-document: no command of its own.
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue
            while words and re.match(r"^[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


@blocks("sh", "bash")
def test_our_commands_exist(block: Block) -> None:
    for words in commands_of(block.text):
        program = words[0].removeprefix(".venv/bin/")
        if program == "sage":
            check_sage(words[1:])
        elif program in ("./quickstart.sh", "./manage.sh"):
            check_script(program, words[1:])
        elif program == "pip" and words[1] == "install":
            check_extras(words)


def check_sage(words: list[str]) -> None:
    from sage_bench.cli import app as bench
    from sage_prefect.cli.main import app

    command: Any = typer.main.get_command(app)
    command.commands["bench"] = typer.main.get_command(bench)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in {*options, "--help"}, f"no option {word!r}"


def check_script(script: str, words: list[str]) -> None:
    usage = subprocess.run(
        [ROOT / script, "--help"], capture_output=True, text=True, check=True
    ).stdout
    if script == "./manage.sh":
        verbs = set(re.findall(r"^ {2}([a-z-]+)", usage, flags=re.MULTILINE))
        assert set(words[:1]) <= verbs
        words = words[1:] if words[:1] == ["test"] else words
    for word in words:
        assert not word.startswith("--") or word in usage, f"{script}: no option {word!r}"


def check_extras(words: list[str]) -> None:
    known = set(importlib.metadata.metadata("sage-prefect").get_all("Provides-Extra") or [])
    for word in words:
        extras = re.fullmatch(r"(?:sage-prefect|\.)\[([\w,-]+)\]", word)
        assert not extras or set(extras[1].split(",")) <= known


def test_every_verb_and_option_of_the_scripts_is_real() -> None:
    for script in ("quickstart.sh", "manage.sh"):
        code = (ROOT / script).read_text()
        usage, _, rest = code.partition("\nTEXT\n")
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", usage.partition("<<'TEXT'")[2])):
            if option in ("--strict", "--help", "--gpu"):  # mypy's, both, handed to vllm_env
                continue
            assert option in rest, f"{script} offers {option} and never reads it"


# -- links --------------------------------------------------------------------------------


def anchors(file: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"^(https?|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        other = (file.parent / path).resolve() if path else file
        assert other.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(other), f"{target}: no such heading"


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_modules_that_documents_name_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tops = "sage_prefect|gateway|blocks|benchmarks|native|flows|tests|docs|deployments|constraints"
    for path in set(re.findall(rf"`((?:{tops})/[\w./*-]*)`", text)):
        assert list(ROOT.glob(path.rstrip("/"))), f"{path} is not there"
    groups = {"sage_prefect.runners"}  # of entry points, not a module
    dotted_names = re.findall(r"`(sage_(?:prefect|gateway|bench|blocks)(?:\.\w+)+)`", text)
    for dotted in set(dotted_names) - groups:
        assert importable(dotted), f"{dotted} is not there"


def importable(dotted: str) -> bool:
    """Whether it is a module, or a name in one."""
    import importlib

    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False
