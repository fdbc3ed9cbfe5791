"""Checks of this machine and this installation, each with its way out (``sage doctor``)."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from sage_prefect.common import endpoints, paths
from sage_prefect.common.compiled import compiled_state
from sage_prefect.common.errors import SageError
from sage_prefect.common.keys import key_file, read_master_key
from sage_prefect.common.ports import SagePorts, is_free, is_wsl2
from sage_prefect.common.settings import load_settings
from sage_prefect.platform.engines import DRIVERS, driver
from sage_prefect.platform.gpus import list_gpus
from sage_prefect.platform.models import CATALOG, resolve
from sage_prefect.platform.registry import require_state_dir

Status = Literal["OK", "WARN", "FAIL"]

_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``hint`` is the way out where there is something to do."""

    check: str
    status: Status
    detail: str
    hint: str | None = None


@dataclass(frozen=True)
class KnownBad:
    """Versions of a package that do not work here: from ``first`` up to, not with, ``end``."""

    package: str
    first: tuple[int, ...]
    end: tuple[int, ...]
    why: str
    fix: str

    def matches(self, version: str) -> bool:
        """Whether ``version`` is one of them."""
        return self.first <= parse_version(version) < self.end


_ANY = (1 << 30,)
KNOWN_BAD = (
    KnownBad(
        "fastapi",
        (0, 151),
        _ANY,
        "the Prefect 3.8 server fails at import with it (Body() lost min_items)",
        "pip install 'fastapi>=0.139,<0.151'",
    ),
    KnownBad(
        "prefect",
        (3, 9),
        _ANY,
        "3.9 requires a certifi that no index serves, and is not proven with SAGE",
        "pip install 'prefect>=3.8.8,<3.9'",
    ),
    KnownBad(
        "prefect",
        (0,),
        (3, 8, 8),
        "it is older than what SAGE needs",
        "pip install -U 'prefect<3.9'",
    ),
    KnownBad(
        "litellm",
        (0,),
        (1, 106, 2),
        "it carries CVE-2026-42208",
        "pip install 'litellm>=1.106.2,<1.107'",
    ),
)
_PACKAGES = ("prefect", "prefect-dask", "dask", "distributed", "fastapi", "xllamacpp", "torch")


def examine() -> Iterator[Finding]:
    """Run all checks, one after the other; a check that breaks is a FAIL, not an exception."""
    for check in CHECKS:
        try:
            yield from check()
        except SageError as error:
            yield Finding(_title(check), "FAIL", error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - the report must come to its end
            yield Finding(_title(check), "FAIL", f"the check broke: {error!r}", "Report this.")


def _title(check: Callable[[], Iterator[Finding]]) -> str:
    return check.__name__.removeprefix("check_").replace("_", " ")


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers of a version's release part: ``"3.8.8.post1+cpu"`` is ``(3, 8, 8)``."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else (0,)


# -- the checks -------------------------------------------------------------------------------


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    version = sys.version.split()[0]
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        yield Finding("python", "OK", f"{version}, {sys.executable}")
    else:
        yield Finding("python", "WARN", f"{version} is not proven", "Use Python 3.10 to 3.13.")


def check_toolchain() -> Iterator[Finding]:
    """Compiler, CMake and the native module built with them."""
    compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    try:
        native = importlib.import_module("sage_prefect._native")
        problem = None
    except ImportError as error:
        native, problem = None, str(error)
    # Without the module the tools matter; with it only for the next build.
    missing: Status = "WARN" if native else "FAIL"
    install = "Debian, Ubuntu: sudo apt-get install build-essential cmake"
    if compiler is None:
        yield Finding("C++ compiler", missing, "none of c++, g++, clang++ is on the path", install)
    else:
        yield Finding("C++ compiler", "OK", _first_line([compiler, "--version"]))
    beside = Path(sys.executable).parent / "cmake"
    cmake = str(beside) if beside.exists() else shutil.which("cmake")
    if cmake is None:
        yield Finding("cmake", missing, "not on the path", f"{install}; or: pip install cmake")
    else:
        yield Finding("cmake", "OK", _first_line([cmake, "--version"]))
    if native is None:
        yield Finding(
            "native module", "FAIL", f"cannot be imported: {problem}", "Run: pip install -e ."
        )
    else:
        yield Finding("native module", "OK", str(getattr(native, "__file__", native)))
    for name, package in (
        ("control plane", "sage_prefect.control_plane"),
        ("gateway", "sage_gateway"),
    ):
        compiled = compiled_state(package)
        if compiled.active:
            yield Finding(name, "OK", f"compiled: {compiled.reason}")
        else:
            # Right all the same, and slower.
            yield Finding(
                name,
                "WARN",
                f"interpreted, much slower: {compiled.reason}",
                "Run: pip install -e . (or ./quickstart.sh --no-demo)",
            )


def check_packages() -> Iterator[Finding]:
    """Versions of the packages that matter, and combinations known not to work."""
    found = {}
    for package in sorted({*_PACKAGES, *(bad.package for bad in KNOWN_BAD)}):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    bad = [row for row in KNOWN_BAD if row.package in found and row.matches(found[row.package])]
    for row in bad:
        yield Finding(row.package, "FAIL", f"{found[row.package]}: {row.why}", f"Run: {row.fix}")
    good = [f"{name} {version}" for name, version in found.items()]
    yield Finding("packages", "OK", ", ".join(good) or "none of the optional ones")
    for needed in ("prefect", "distributed"):
        if needed not in found:
            yield Finding(
                needed,
                "WARN",
                "not installed: pipelines run in this process only",
                "Run: pip install 'sage-prefect[pipelines]'",
            )


def check_models() -> Iterator[Finding]:
    """The default models and their checksums."""
    for name in CATALOG:
        try:
            files = resolve(name)
        except SageError as error:
            yield Finding(f"model {name}", "FAIL", error.message, error.hint)
        else:
            yield Finding(f"model {name}", "OK", f"checksum right, {files.path}")


def check_engines() -> Iterator[Finding]:
    """Which engine drivers can run here."""
    gpus = list_gpus()
    for gpu in gpus:
        yield Finding(
            f"GPU {gpu.index}",
            "OK",
            f"{gpu.name}, {gpu.memory_used_mib} of {gpu.memory_total_mib} MiB used, "
            f"driver {gpu.driver}",
        )
    if not gpus:
        yield Finding("GPU", "OK", "none (nvidia-smi finds none): engines run on the CPU")
    for name in DRIVERS:
        found = driver(name).availability()
        if found.ok:
            yield Finding(f"engine {name}", "OK", found.detail)
        elif name == "vllm" and not gpus:
            yield Finding(f"engine {name}", "OK", f"{found.detail} Not needed without a GPU.")
        else:
            yield Finding(f"engine {name}", "WARN", found.detail, found.hint)


def check_ports() -> Iterator[Finding]:
    """Whether the default ports are free or ours."""
    ours = {url.rpartition(":")[2].partition("/")[0] for url in endpoints.read_all().values()}
    taken, mine = [], []
    for row in SagePorts:
        port = row.resolve()
        if is_free(port):
            continue
        if str(port) in ours:
            mine.append(f"{row.name.lower()} {port}")
        elif row.override() is not None:
            yield Finding(
                f"port {port}",
                "FAIL",
                f"{row.variable} chooses it for {row.name.lower()}, but it is taken",
                f"Free it, or unset {row.variable}.",
            )
        else:
            taken.append(f"{row.name.lower()} {port}")
    if taken:
        yield Finding(
            "ports",
            "WARN",
            f"taken by others: {', '.join(taken)}",
            "SAGE takes the next free port; `sage status` shows which.",
        )
    else:
        yield Finding("ports", "OK", f"in use by SAGE: {', '.join(mine)}" if mine else "all free")
    if is_wsl2():
        yield Finding("WSL2", "OK", f"LLM engines use port {int(SagePorts.LLM_WSL)} here")


def check_settings() -> Iterator[Finding]:
    """Settings files and environment variables."""
    load_settings()
    yield Finding("settings", "OK", "files and environment are right")


def check_directories() -> Iterator[Finding]:
    """The state directory can be written, and there is room."""
    folder = require_state_dir()
    yield Finding("state directory", "OK", f"{folder} is writable")
    places = {"data": paths.data_dir(), "state": folder, "cache": paths.cache_dir()}
    devices: dict[int, tuple[str, Path]] = {}
    for name, place in places.items():
        existing = next(p for p in (place, *place.parents) if p.exists())
        devices.setdefault(existing.stat().st_dev, (name, existing))
    for name, place in devices.values():
        free = shutil.disk_usage(place).free / _GIB
        status: Status = "OK" if free >= 5 else "WARN" if free >= 0.5 else "FAIL"
        hint = None if status == "OK" else "Make room, or set SAGE_HOME to a larger disk."
        yield Finding(f"disk ({name})", status, f"{free:.1f} GiB free at {place}", hint)


def check_memory() -> Iterator[Finding]:
    """Free memory and open-file limit."""
    memory = psutil.virtual_memory()
    free, total = memory.available / _GIB, memory.total / _GIB
    status: Status = "OK" if free >= 3 else "WARN" if free >= 1 else "FAIL"
    hint = None if status == "OK" else "`sage up` needs about 3 GiB; end other programs."
    yield Finding("memory", status, f"{free:.1f} of {total:.1f} GiB available", hint)
    yield Finding("CPU", "OK", f"{len(os.sched_getaffinity(0))} cores")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < 1024:
        yield Finding(
            "open files", "WARN", f"limit {soft} (hard {hard})", "Run: ulimit -n 4096, or more."
        )


def check_master_key() -> Iterator[Finding]:
    """The gateway's key."""
    if os.environ.get("SAGE_MASTER_KEY"):
        yield Finding("master key", "OK", "from SAGE_MASTER_KEY")
    elif read_master_key() is None:
        yield Finding("master key", "OK", "none yet: `sage up` makes one")
    else:
        yield Finding("master key", "OK", f"{key_file()}, readable by its owner only")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_toolchain,
    check_packages,
    check_models,
    check_engines,
    check_ports,
    check_settings,
    check_directories,
    check_memory,
    check_master_key,
)


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else f"{command[0]} said nothing (exit status {done.returncode})"
