"""``PythonDocs``: the documentation of the installed Python standard library as rows.

Real text that is present on every machine: docstrings of modules, classes, functions and methods,
and the language reference that ``help()`` shows.
"""

from __future__ import annotations

import ast
import math
import platform
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pyarrow as pa

from sage_prefect.common.errors import EmptySourceError, RecordError, UnknownNameError
from sage_prefect.kernel.source import Source, SourcePart
from sage_prefect.libs.extract.python_object import documented
from sage_prefect.libs.extract.python_source import Documented, ModuleOutline, outline, parse

#: Docstrings with fewer characters say nothing that their name does not.
MIN_CHARACTERS = 20
#: Packages with more source than this are cut into several parts.
PART_BYTES = 200_000
_TITLE_CHARACTERS = 60
# Source per documented thing, measured on CPython 3.10 to 3.13; it only balances partitions.
_BYTES_PER_ROW = 1500
_COMPILED_BYTES = 40_000

_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("kind", pa.string()),
        ("module", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
    ]
)

# Tests, tools that are programs, code for other systems, jokes, and what was removed since.
_SKIPPED = frozenset(
    {"antigravity", "asynchat", "asyncore", "distutils", "ensurepip", "idlelib", "lib2to3"}
    | {"msilib", "nt", "ntpath", "nturl2path", "posix", "pydoc_data", "sre_compile"}
    | {"sre_constants", "sre_parse", "test", "this", "turtledemo", "winreg", "xxsubtype"}
)
_SKIPPED_FOLDERS = frozenset({"test", "tests", "__pycache__", "_pyrepl", "lib-dynload"})

# Compiled modules outside the interpreter whose import does nothing but define names.
_SAFE_EXTENSIONS = frozenset(
    {"_asyncio", "_bisect", "_bz2", "_contextvars", "_csv", "_ctypes", "_datetime", "_decimal"}
    | {"_elementtree", "_hashlib", "_heapq", "_json", "_lzma", "_multiprocessing", "_pickle"}
    | {"_queue", "_random", "_socket", "_sqlite3", "_ssl", "_statistics", "_struct", "_uuid"}
    | {"_zoneinfo", "array", "binascii", "cmath", "fcntl", "grp", "math", "mmap", "pyexpat"}
    | {"resource", "select", "syslog", "termios", "unicodedata", "zlib"}
)
# Public names of modules that live under another one.
_RENAMED = {"posixpath": "os.path"}
_TOPICS = "help"


class PythonDocs(Source):
    """Rows of the Python standard library's documentation, one per documented thing.

    Columns: ``source`` (``shlex.split``), ``kind`` (``module``, ``class``, ``function``,
    ``method``, ``topic``), ``module``, ``title`` (``shlex.split(s, comments=False)``), ``text``
    (title line and docstring). Sources that are files are parsed, never imported; of compiled
    modules only such as are free of side effects are imported. Names are those that users import:
    ``asyncio.gather``, not ``asyncio.tasks.gather``. One part per
    top-level module; large packages are cut into several.

    Args:
        modules: top-level modules (``["json", "pathlib"]``; ``help`` is the language reference);
            None: all.
        exclude: modules to leave out.

    Raises:
        UnknownNameError: a module that is not documented here (when the run starts).
    """

    name = "python-docs"
    adds = tuple(_SCHEMA.names)
    weight_cost_s = 2e-7

    def __init__(self, modules: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> None:
        self.modules = list(modules) if modules is not None else None
        self.exclude = list(exclude)

    def parts(self) -> Sequence[SourcePart]:
        found = _modules()
        if not found:
            raise EmptySourceError(
                f"no module sources under {stdlib_dir()}.",
                hint="This Python was installed without its library sources.",
            )
        names = list(found) if self.modules is None else self.modules
        for name in (*names, *self.exclude):
            if name not in found:
                raise UnknownNameError("standard library module", name, found)
        return [
            part for name in names if name not in self.exclude for part in _parts(name, found[name])
        ]

    def read(self, part: SourcePart) -> Iterator[pa.RecordBatch]:
        module, piece, pieces = part.spec
        files = _modules().get(module)
        if files is None:
            raise RecordError(
                f"module {module!r} is not in {stdlib_dir()}, though it was when the run started.",
                hint="Workers need the same Python as the process that starts the run.",
            )
        rows = list(_rows(module, files))
        rows = rows[len(rows) * piece // pieces : len(rows) * (piece + 1) // pieces]
        if rows:
            yield pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)


def stdlib_dir() -> Path:
    """Where this interpreter's standard library lies."""
    return Path(sysconfig.get_path("stdlib"))


@lru_cache(maxsize=1)
def _modules() -> dict[str, tuple[Path, ...]]:
    """Public top-level modules and their files (none: compiled), by name."""
    root = stdlib_dir()
    found: dict[str, tuple[Path, ...]] = {}
    for path in root.iterdir() if root.is_dir() else ():
        name = _RENAMED.get(path.stem, path.stem)
        if name.startswith("_") or name in _SKIPPED or not path.stem.isidentifier():
            continue
        if path.suffix == ".py" and path.is_file():
            found[name] = (path,)
        elif path.is_dir() and (path / "__init__.py").is_file():
            found[name] = tuple(sorted(_package_files(path)))
    for name in (*sys.builtin_module_names, *_SAFE_EXTENSIONS):
        if not name.startswith("_") and name not in _SKIPPED | set(found):
            found[name] = ()
    if (root / "pydoc_data" / "topics.py").is_file():
        found[_TOPICS] = (root / "pydoc_data" / "topics.py",)
    return dict(sorted(found.items()))


def _package_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            if path.name not in _SKIPPED_FOLDERS:
                yield from _package_files(path)
        # Codecs are one line of documentation each, and hundreds.
        elif path.suffix == ".py" and not (folder.name == "encodings" and path.stem != "__init__"):
            yield path


def _parts(module: str, files: tuple[Path, ...]) -> Iterator[SourcePart]:
    """One part, or several for a large package."""
    stats = [(path.as_posix(), path.stat()) for path in files]
    marks = [f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats]
    size = sum(stat.st_size for _, stat in stats) or _COMPILED_BYTES
    pieces = math.ceil(size / PART_BYTES)
    for piece in range(pieces):
        yield SourcePart(
            key="|".join([module, f"{piece}/{pieces}", platform.python_version(), *marks]),
            spec=(module, piece, pieces),
            label=module if pieces == 1 else f"{module} {piece + 1}/{pieces}",
            weight=size / pieces,
            rows=max(1, size // pieces // _BYTES_PER_ROW),
        )


def _rows(module: str, files: tuple[Path, ...]) -> Iterator[dict[str, str]]:
    if module == _TOPICS:
        yield from _topics(files[0])
        return
    best: dict[str, Documented] = {}

    def add(prefix: str, entry: Documented) -> None:
        name = f"{prefix}.{entry.name}" if entry.name else prefix
        if prefix == "builtins" and entry.name:
            name = entry.name
        known = best.get(name)
        # The same thing in C and in Python: the longer text says more.
        if known is None or len(entry.doc) > len(known.doc):
            best[name] = entry

    if not files:
        for entry in _compiled(module):
            add(module, entry)
    outlines = {_dotted(module, path): _outline(path) for path in files}
    for dotted in outlines:
        for name, entry in _public(dotted, outlines):
            add(name, entry)
    for name, entry in best.items():
        if len(entry.doc) >= MIN_CHARACTERS:
            yield _row(name, module, entry)


def _row(name: str, module: str, entry: Documented) -> dict[str, str]:
    if entry.kind == "module":
        title = f"{name} (module)"
    else:
        prefix = name[: -len(entry.name.rpartition(".")[2])]
        title = _shortened(prefix + entry.signature)
    return {
        "source": name,
        "kind": entry.kind,
        "module": module,
        "title": title,
        "text": f"{title}\n{entry.doc}",
    }


def _shortened(title: str) -> str:
    """A call with a dozen parameters says less than the sentence below it: some are enough."""
    if len(title) <= _TITLE_CHARACTERS:
        return title
    cut = title.rfind(", ", 0, _TITLE_CHARACTERS)
    return f"{title[:cut]}, ...)" if cut > 0 else title


def _public(dotted: str, outlines: dict[str, ModuleOutline]) -> Iterator[tuple[str, Documented]]:
    """What module ``dotted`` documents, with the module that users import it from."""
    found = outlines[dotted]
    entries = list(found.documented)
    for origin, names in found.imports.items():
        # Public modules take much from private ones: ``from _io import open``.
        if origin in _ORIGINS or (origin.startswith("_") and not origin.startswith("__")):
            source, candidates = _elsewhere(origin)
            for entry in candidates:
                if entry.name and source.gives(entry.name, names):
                    taken = _renamed(entry, names)
                    if not taken.name.startswith("_"):
                        entries.append(taken)
    private = _is_internal(dotted, outlines)
    for entry in entries:
        home = _home(dotted, entry.name, outlines) if entry.name else None
        if home is not None or not private:
            yield home or dotted, entry


def _is_internal(dotted: str, outlines: dict[str, ModuleOutline]) -> bool:
    """Whether users have no business in ``dotted`` beyond what packages above it offer."""
    package, _, name = dotted.rpartition(".")
    if not package:
        return False
    if dotted in _INTERNAL or any(part.startswith("_") for part in dotted.split(".")[1:]):
        return True
    # What a package takes its own names from is where it is implemented: json.encoder.
    top = outlines.get(package)
    return top is not None and bool(top.imports.get(f".{name}") or top.imports.get(dotted))


_INTERNAL = frozenset(
    {"asyncio.base_subprocess", "asyncio.format_helpers", "asyncio.proactor_events"}
    | {"asyncio.selector_events", "asyncio.sslproto", "asyncio.staggered", "asyncio.trsock"}
    | {"asyncio.unix_events", "asyncio.windows_events", "asyncio.windows_utils"}
)
# Modules without an underscore that exist to be re-exported.
_ORIGINS = frozenset({"posix", "genericpath"})


def _home(dotted: str, name: str, outlines: dict[str, ModuleOutline]) -> str | None:
    """The outermost package that offers ``name``, defined in its submodule, as its own."""
    parts = dotted.split(".")
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        top = outlines.get(package)
        if top is None:
            continue
        below = ".".join(parts[length:])
        taken = {**top.imports.get(f".{below}", {}), **top.imports.get(dotted, {})}
        first = name.partition(".")[0]
        listed = top.exported is not None and first in top.exported
        if listed or outlines[dotted].gives(name, taken):
            return package
    return None


@lru_cache(maxsize=64)
def _elsewhere(origin: str) -> tuple[ModuleOutline, tuple[Documented, ...]]:
    path = stdlib_dir() / f"{origin}.py"
    if path.is_file():
        found = _outline(path)
        return found, tuple(found.documented)
    return ModuleOutline(), tuple(_compiled(origin, private=True))


def _renamed(entry: Documented, names: dict[str, str]) -> Documented:
    """The entry under the name of ``from origin import name as other``."""
    first, dot, rest = entry.name.partition(".")
    other = names.get(first, first)
    if other == first:
        return entry
    signature = entry.signature
    if not dot:
        signature = other + signature[len(first) :]
    return replace(entry, name=other + dot + rest, signature=signature)


def _compiled(module: str, *, private: bool = False) -> Iterator[Documented]:
    if module not in sys.builtin_module_names and module not in _SAFE_EXTENSIONS:
        return
    try:
        loaded = import_module(module)
    except ImportError:
        return  # built without it: then there is nothing of it to document
    yield from documented(loaded, private=private)


def _outline(path: Path) -> ModuleOutline:
    try:
        return outline(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {error}.") from error


def _dotted(module: str, path: Path) -> str:
    """``email.mime.text`` of ``.../email/mime/text.py`` in package ``email``."""
    if path.parent == stdlib_dir():
        return module
    below = path.relative_to(stdlib_dir()).with_suffix("").parts
    return ".".join(below[:-1] if below[-1] == "__init__" else below)


def _topics(path: Path) -> Iterator[dict[str, str]]:
    """The language reference as ``help("with")`` shows it."""
    try:
        tree = parse(path.read_bytes())
        values = [node.value for node in tree.body if isinstance(node, ast.Assign)]
        topics = ast.literal_eval(values[-1]) if values else {}
    except (OSError, SyntaxError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {error}.") from error
    for name, text in topics.items():
        title = f"{name} (Python help topic)"
        yield {
            "source": f"help({name!r})",
            "kind": "topic",
            "module": _TOPICS,
            "title": title,
            "text": f"{title}\n{text.strip()}",
        }
