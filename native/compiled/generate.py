"""Turn a package into C with mypyc; CMake compiles what this writes.

``python generate.py PACKAGE ROOT OUT`` reads the sources of PACKAGE, one of :data:`PACKAGES`, under
the repository ROOT and writes to OUT:

* one C file for each module, and one for what they share (``__native_*.c``);
* ``module.c``: the extension. It tells from which sources it was made (``DIGEST``), holds every
  compiled module (``MODULES``) and a ``PyInit_`` function for each.
  ``sage_prefect.common.compiled`` imports them from there.

A file whose content stays the same keeps its time, so that a change of one module compiles one
module. ``python generate.py --list PACKAGE ROOT`` prints the names of the C files.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mypyc
from mypyc.build import mypycify


@dataclass(frozen=True)
class Package:
    """What is compiled into one extension.

    Args:
        name: full name of the package.
        folder: where its root lies in the repository.
        group: mypyc's name for the modules together.
        extension: full name of the extension.
        only: stems of the modules to compile; none: all but ``not_``.
        not_: stems of modules that stay interpreted.
    """

    name: str
    folder: str
    group: str
    extension: str
    only: tuple[str, ...] = ()
    not_: tuple[str, ...] = ()

    @property
    def shared(self) -> str:
        """The module with what the others share."""
        return f"{self.group}__mypyc"

    def directory(self, root: Path) -> Path:
        return root.joinpath(self.folder, *self.name.split("."))

    def modules(self, root: Path) -> list[str]:
        """Full names of the modules to compile."""
        base = root / self.folder
        return [
            ".".join(file.relative_to(base).with_suffix("").parts)
            for file in sorted(self.directory(root).rglob("*.py"))
            if file.stem != "__init__"
            and (not self.only or file.stem in self.only)
            and file.stem not in self.not_
        ]


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "sage_prefect.control_plane",
            ".",
            "sage_control_plane",
            "sage_prefect._control_plane",
            # Read the types at run time, which mypyc does not keep.
            not_=("event_bounds", "event_json", "event_record", "events"),
        ),
        Package(
            "sage_gateway",
            "gateway",
            "sage_data_path",
            "sage_gateway._data_path",
            # What each request passes.
            only=(
                *("answer_relay", "auth", "client_exchange", "embedding_answer", "engine_speech"),
                *("engines", "inference", "inline_task", "json_splice", "model_access"),
                *("model_names", "model_plan", "reply", "request_body", "scheduler", "sse_relay"),
                *("stream_progress", "tallies", "upstream", "upstream_answer", "upstream_pool"),
                *("usage", "vector_collection"),
            ),
        ),
    )
}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--list"]:
        package = PACKAGES[arguments[1]]
        print(";".join(c_files(package, package.modules(Path(arguments[2]).resolve()))))
        return
    package = PACKAGES[arguments[0]]
    root, out = Path(arguments[1]).resolve(), Path(arguments[2]).resolve()
    names = package.modules(root)
    with tempfile.TemporaryDirectory(prefix="sage-mypyc-") as scratch:
        made = Path(scratch)
        check(package, root, names)
        generate(package, root, made, names)
        (made / "module.c").write_text(module_source(package, names, digest(package, root)))
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(made.glob("*.[ch]")):
            keep_or_replace(file, out / file.name)
    # An isolated build sees mypyc in another place each time; from here the objects stay valid.
    runtime = Path(mypyc.__file__).parent / "lib-rt"
    for file in sorted(runtime.rglob("*.[ch]")):
        keep_or_replace(file, out / "lib-rt" / file.relative_to(runtime))


def c_files(package: Package, names: list[str]) -> list[str]:
    """What :func:`generate` and :func:`module_source` write for these modules."""
    modules = [f"__native_{c_name(name)}.c" for name in names]
    return ["module.c", f"__native_{package.group}.c", *modules]


def c_name(module: str) -> str:
    """The module's name in mypyc's C identifiers."""
    return module.replace(".", "___")


def check(package: Package, root: Path, names: list[str]) -> None:
    """Refuse what mypyc compiles to something else than Python does.

    A name bound by two ``except`` clauses of one function has the first one's type in C: the other
    exception would become a TypeError. A class whose base comes from a library has another layout
    where the build lacks that library, as isolated ones do: it would crash.
    """
    for name in names:
        file = root.joinpath(package.folder, *name.split(".")).with_suffix(".py")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        refuse_foreign_bases(tree, str(file.relative_to(root)))
        for function in ast.walk(tree):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            bound: dict[str, str] = {}
            for node in ast.walk(function):
                if isinstance(node, ast.ExceptHandler) and node.name and node.type is not None:
                    kind = ast.unparse(node.type)
                    if bound.setdefault(node.name, kind) != kind:
                        sys.exit(
                            f"{file.relative_to(root)}:{node.lineno}: {node.name!r} is bound to "
                            f"{bound[node.name]} and to {kind} in {function.name}(); compiled code "
                            "takes both for the first. Use two names."
                        )


def refuse_foreign_bases(tree: ast.Module, shown: str) -> None:
    """Exit if a class of ``tree`` inherits from what neither Python nor this repository has."""
    known = {*sys.stdlib_module_names, *(name.partition(".")[0] for name in PACKAGES)}
    foreign: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module.partition(".")[0] not in known:
                foreign |= {each.asname or each.name: node.module for each in node.names}
        elif isinstance(node, ast.Import):
            for each in node.names:
                if each.name.partition(".")[0] not in known:
                    foreign[(each.asname or each.name).partition(".")[0]] = each.name
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                origin = foreign.get(ast.unparse(base).partition(".")[0].partition("[")[0])
                if origin is not None:
                    sys.exit(
                        f"{shown}:{node.lineno}: {node.name} inherits from {ast.unparse(base)} of "
                        f"{origin}, which a build need not have. Leave this module interpreted."
                    )


def generate(package: Package, root: Path, out: Path, names: list[str]) -> None:
    os.chdir(root)
    os.environ["MYPYPATH"] = os.pathsep.join(str(root / each.folder) for each in PACKAGES.values())
    files = [str(Path(package.folder, *name.split(".")).with_suffix(".py")) for name in names]
    options = [
        # Not strict: an isolated build lacks the libraries whose types that would ask for.
        # ./manage.sh types is strict.
        "--config-file=",
        "--follow-imports=silent",
        "--ignore-missing-imports",
        "--explicit-package-bases",
        f"--cache-dir={out / 'cache'}",
    ]
    mypycify(
        [*options, *files],
        group_name=package.group,
        multi_file=True,
        target_dir=str(out),
        include_runtime_files=True,
    )


def digest(package: Package, root: Path) -> str:
    """As the import checks it; loaded by path, for SAGE is not installed yet."""
    file = root / "sage_prefect" / "common" / "compiled.py"
    spec = importlib.util.spec_from_file_location("compiled", file)
    if spec is None or spec.loader is None:
        sys.exit(f"{file} cannot be loaded.")
    module = sys.modules["compiled"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.sources_digest(package.directory(root)))


def module_source(package: Package, names: list[str], digest_: str) -> str:
    """C source of the extension that holds the modules ``names``."""
    lasts = [name.rpartition(".")[2] for name in names]
    twice = {last for last in lasts if lasts.count(last) > 1}
    if twice:
        # PyInit_ functions bear the last part of a module's name alone.
        sys.exit(
            f"two modules of {package.name} are called {', '.join(sorted(twice))}; rename one."
        )
    inits = "\n".join(
        f"extern PyObject *CPyInit_{c_name(name)}(void);\n"
        f"PyMODINIT_FUNC PyInit_{last}(void) {{ return init(CPyInit_{c_name(name)}); }}"
        for name, last in zip(names, lasts, strict=True)
    )
    listed = "".join(f'\n    "{name}",' for name in [package.shared, *names])
    return f"""\
#include <Python.h>

/* What the modules share comes first; mypyc's code looks for it among the imported modules. */
static PyObject *init(PyObject *(*module)(void)) {{
    PyObject *shared = PyImport_ImportModule("{package.shared}");
    if (shared == NULL) return NULL;
    Py_DECREF(shared);
    return module();
}}

{inits}

static const char *const modules[] = {{{listed}
    NULL,
}};

static struct PyModuleDef definition = {{
    PyModuleDef_HEAD_INIT, "{package.extension}",
    "The compiled modules of {package.name}.", -1, NULL, NULL, NULL, NULL, NULL,
}};

PyMODINIT_FUNC PyInit_{package.extension.rpartition(".")[2]}(void) {{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) return NULL;
    PyObject *names = PyList_New(0);
    if (names == NULL) goto fail;
    for (int i = 0; modules[i] != NULL; i++) {{
        PyObject *name = PyUnicode_FromString(modules[i]);
        if (name == NULL || PyList_Append(names, name) < 0) {{
            Py_XDECREF(name);
            goto fail;
        }}
        Py_DECREF(name);
    }}
    if (PyModule_AddObjectRef(module, "MODULES", names) < 0) goto fail;
    Py_DECREF(names);
    if (PyModule_AddStringConstant(module, "DIGEST", "{digest_}") < 0) {{
        Py_DECREF(module);
        return NULL;
    }}
    return module;
fail:
    Py_XDECREF(names);
    Py_DECREF(module);
    return NULL;
}}
"""


def keep_or_replace(new: Path, old: Path) -> None:
    """Copy a file, unless it is there and the same: its time says whether it is to be compiled."""
    if not (old.exists() and old.read_bytes() == new.read_bytes()):
        old.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new, old)


if __name__ == "__main__":
    main(sys.argv[1:])
