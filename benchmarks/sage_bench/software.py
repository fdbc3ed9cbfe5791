"""The software under a benchmark: system, Python, packages, and the state of the checkout."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from sage_prefect.common.compiled import compiled_state

# Packages whose versions a reader looks for first; the full list is packages.txt.
KEY_PACKAGES = (
    "sage-prefect", "prefect", "prefect-dask", "dask", "distributed", "numpy", "pyarrow", "torch",
    "sentence-transformers", "transformers", "faiss-cpu", "fastapi", "uvicorn", "httpx",
    "xllamacpp", "litellm", "vllm",
)  # fmt: skip


def installed_packages() -> list[str]:
    """``name==version`` of every distribution of this environment, sorted."""
    found = {
        f"{distribution.metadata['Name'].lower()}=={distribution.version}"
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }
    return sorted(found)


def describe_software(packages: list[str]) -> dict[str, Any]:
    """Versions, and the SHA-256 of the list of packages as it stands in ``packages.txt``."""
    control_plane = compiled_state("sage_prefect.control_plane")
    gateway = compiled_state("sage_gateway")
    versions = dict(package.split("==", 1) for package in packages)
    return {
        "os": _distribution(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "python": sys.version.split()[0],
        "implementation": platform.python_implementation(),
        "control_plane": "compiled" if control_plane.active else control_plane.reason,
        "gateway": "compiled" if gateway.active else gateway.reason,
        "packages_file": "packages.txt",
        "packages_sha256": hashlib.sha256(packages_text(packages)).hexdigest(),
        "key_packages": {name: versions[name] for name in KEY_PACKAGES if name in versions},
    }


def packages_text(packages: list[str]) -> bytes:
    """Content of ``packages.txt``."""
    return ("\n".join(packages) + "\n").encode()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def describe_checkout(file: Path) -> dict[str, Any]:
    """Commit and dirty flag of the git checkout that tracks ``file``.

    For a file that no checkout tracks ``commit`` is ``"not a checkout"`` and ``dirty`` None: an
    installed wheel may lie inside the checkout of something else.
    """
    folder = file.parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return {"commit": "not a checkout", "dirty": None}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=normal") or ""
    return {
        "commit": commit,
        "dirty": bool(changed),
        "changed_files": len(changed.splitlines()),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content (of all files below it, by sorted path, for a folder)."""
    digest = hashlib.sha256()
    files = sorted(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else [file]
    for part in files:
        if file.is_dir():
            digest.update(part.relative_to(file).as_posix().encode() + b"\0")
        with part.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
