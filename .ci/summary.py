"""``./manage.sh summary``: what this repository consists of, counted now."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LANGUAGES = {
    ".py": "Python",
    ".pyi": "Python",
    ".cpp": "C++",
    ".hpp": "C++",
    ".h": "C++",
    ".sh": "shell",
    ".yaml": "YAML",
    ".yml": "YAML",
    ".toml": "TOML",
    ".md": "Markdown",
    ".cmake": "CMake",
    ".jsonl": "data",
    ".json": "data",
    ".csv": "data",
    ".txt": "data",
}
NAMES = {"CMakeLists.txt": "CMake", ".importlinter": "configuration", ".ci/run": "shell"}
PARTS = {
    "sage_prefect": "library",
    "gateway": "gateway",
    "blocks": "blocks",
    "benchmarks": "benchmarks",
    "native": "native",
    "flows": "flows",
    "tests": "tests",
    "docs": "documents",
    "deployments": "deployments",
}


def files() -> list[Path]:
    """Files under version control and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    paths = (ROOT / name for name in listed.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def language(path: Path) -> str:
    """The language of a file, by its name."""
    relative = path.relative_to(ROOT).as_posix()
    by_name = NAMES.get(relative) or NAMES.get(path.name)
    return by_name or LANGUAGES.get(path.suffix, "other")


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Plain columns: the first to the left, the others to the right."""
    cells = [head, *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        aligned = [row[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join(aligned))


def size(path: Path) -> str:
    """Bytes of a file or folder, for people."""
    if path.is_dir():
        number = float(
            sum(f.lstat().st_size for f in path.rglob("*") if f.is_file() and not f.is_symlink())
        )
    else:
        number = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def main() -> None:
    """Print languages, lines, dependencies and artifacts."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    for path in files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            counted["binary"]["files"] += 1
            continue
        kind = language(path)
        numbers = {"files": 1, "lines": len(lines), "filled": sum(1 for x in lines if x.strip())}
        counted[kind].update(numbers)
        top = path.relative_to(ROOT).parts[0]
        if kind in ("Python", "C++"):
            parts[PARTS.get(top, "repository")].update(numbers)

    def rows(of: dict[str, Counter[str]]) -> list[tuple[object, ...]]:
        ordered = sorted(of.items(), key=lambda item: -item[1]["lines"])
        return [(name, f"{c['files']}", f"{c['lines']}", f"{c['filled']}") for name, c in ordered]

    print("Languages")
    table(("", "files", "lines", "not blank"), rows(counted))
    print("\nPython and C++ by part")
    table(("", "files", "lines", "not blank"), rows(parts))

    print("\nDependencies named in pyproject.toml")
    by_extra: dict[str, list[str]] = defaultdict(list)
    for requirement in importlib.metadata.requires("sage-prefect") or []:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+(\[[\w,-]+\])?", requirement)
        by_extra[extra[1] if extra else "(always)"].append(name[0] if name else requirement)
    for extra, names in sorted(by_extra.items()):
        print(f"  {extra:<10} {len(names):>3}  {', '.join(sorted(names))}")
    print("\nPackages locked, with everything that those need (extras all, dev and providers)")
    for lock in sorted((ROOT / "constraints").glob("py3*.txt")):
        count = sum("==" in line for line in lock.read_text().splitlines())
        print(f"  {lock.stem}      {count:>3}")

    print("\nArtifacts on this machine")
    artifacts = [
        *sorted((ROOT / "dist").glob("*")),
        *sorted((ROOT / ".venv").glob("lib/python3.*/site-packages/sage_prefect/_native*.so")),
        *(path for path in (ROOT / ".venv", ROOT / ".sage") if path.exists()),
    ]
    for path in artifacts:
        print(f"  {path.relative_to(ROOT)}  {size(path)}")
    if not artifacts:
        print("  none: ./manage.sh build makes a wheel")


if __name__ == "__main__":
    main()
