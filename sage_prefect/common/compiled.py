"""A package's compiled twin: taken only when it was made from exactly the sources that are here.

mypyc turns the typed modules of a package into C, all of them in one extension module
(``native/compiled/generate.py``). The Python sources stay the truth: where the extension is
missing, does not load or is older than the sources, they run as they are, slower and otherwise
the same. ``SAGE_COMPILED=0`` runs them on purpose.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import ModuleType

SWITCH = "SAGE_COMPILED"


@dataclass(frozen=True)
class CompiledState:
    """Whether a package runs compiled, and why not."""

    active: bool
    reason: str
    """For people: the extension's file, or why Python interprets the sources."""


_states: dict[str, CompiledState] = {}


def compiled_state(package: str) -> CompiledState:
    """What :func:`prefer_compiled` found for ``package``, which is imported for that.

    Raises:
        KeyError: the package has no compiled twin.
    """
    importlib.import_module(package)
    return _states[package]


def prefer_compiled(package: str, extension: str) -> CompiledState:
    """Let ``package``'s modules come from ``extension`` when it was made from these sources.

    To be called in the package's ``__init__``, before any of its modules is imported.

    Args:
        package: full name of the package that is being imported.
        extension: full name of the extension with ``DIGEST`` and ``MODULES``.

    Raises:
        SettingsError: ``SAGE_COMPILED`` is neither 0 nor 1.
    """
    state = _states[package] = _prepare(package, extension)
    return state


def sources_digest(directory: Path) -> str:
    """SHA-256 over names and bytes of all Python files under ``directory``, in hexadecimal."""
    digest = hashlib.sha256()
    for file in sorted(directory.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(directory).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _prepare(package: str, extension: str) -> CompiledState:
    if not _wanted():
        return CompiledState(False, f"switched off by {SWITCH}=0")
    try:
        built = importlib.import_module(extension)
    except ModuleNotFoundError:
        return CompiledState(False, "not built")
    except ImportError as error:
        return CompiledState(False, f"the build does not load: {error}")
    file = str(built.__file__)
    # Not its __path__: in an editable install that begins with where the extension is.
    if sources_digest(Path(str(sys.modules[package].__file__)).parent) != built.DIGEST:
        return CompiledState(False, f"the sources changed since {file} was built")
    sys.meta_path.insert(0, _CompiledFinder(file, built.MODULES))
    return CompiledState(True, file)


def _wanted() -> bool:
    value = os.environ.get(SWITCH, "1")
    if value not in ("0", "1"):
        from sage_prefect.common.errors import SettingsError

        raise SettingsError(
            f"{SWITCH} is {value!r}.", hint="Use 1 (compiled where possible, the default) or 0."
        )
    return value == "1"


class _CompiledFinder(MetaPathFinder):
    """Finds the modules of one extension that holds many (one ``PyInit_`` function for each)."""

    def __init__(self, file: str, modules: Sequence[str]) -> None:
        self._file = file
        self._modules = frozenset(modules)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._modules:
            return None
        loader = ExtensionFileLoader(fullname, self._file)
        return importlib.util.spec_from_file_location(fullname, self._file, loader=loader)
