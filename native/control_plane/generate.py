"""Turn ``sage_prefect.control_plane`` into C with mypyc; CMake compiles what this writes.

``python generate.py ROOT OUT`` reads the sources under ROOT and writes to OUT:

* one C file for each module, and one for what they share (``__native_*.c``);
* ``module.c``: the extension ``sage_prefect._control_plane``. It tells from which sources it was
  made (``DIGEST``), holds every compiled module (``MODULES``) and a ``PyInit_`` function for each.
  ``sage_prefect.common.compiled`` imports them from there.

A file whose content stays the same keeps its time, so that a change of one module compiles one
module. ``python generate.py --list ROOT`` prints the names of the C files.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import mypyc
from mypyc.build import mypycify

PACKAGE = "sage_prefect.control_plane"
GROUP = "sage_control_plane"
SHARED = f"{GROUP}__mypyc"
# Read the types at run time, which mypyc does not keep.
INTERPRETED = ("event_bounds", "event_json", "event_record", "events")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--list"]:
        print(";".join(c_files(module_names(Path(arguments[1]).resolve()))))
        return
    root, out = Path(arguments[0]).resolve(), Path(arguments[1]).resolve()
    names = module_names(root)
    with tempfile.TemporaryDirectory(prefix="sage-mypyc-") as scratch:
        made = Path(scratch)
        generate(root, made, names)
        (made / "module.c").write_text(module_source(names, digest(root)))
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(made.glob("*.[ch]")):
            keep_or_replace(file, out / file.name)
    # An isolated build sees mypyc in another place each time; from here the objects stay valid.
    runtime = Path(mypyc.__file__).parent / "lib-rt"
    for file in sorted(runtime.rglob("*.[ch]")):
        keep_or_replace(file, out / "lib-rt" / file.relative_to(runtime))


def module_names(root: Path) -> list[str]:
    """Full names of the modules to compile."""
    package = root.joinpath(*PACKAGE.split("."))
    return [
        ".".join(file.relative_to(root).with_suffix("").parts)
        for file in sorted(package.rglob("*.py"))
        if file.stem != "__init__" and file.stem not in INTERPRETED
    ]


def c_files(names: list[str]) -> list[str]:
    """What :func:`generate` and :func:`module_source` write for these modules."""
    modules = [f"__native_{c_name(name)}.c" for name in names]
    return ["module.c", f"__native_{GROUP}.c", *modules]


def c_name(module: str) -> str:
    """The module's name in mypyc's C identifiers."""
    return module.replace(".", "___")


def generate(root: Path, out: Path, names: list[str]) -> None:
    os.chdir(root)
    files = [str(Path(*name.split(".")).with_suffix(".py")) for name in names]
    options = [
        # As in pyproject.toml, where it matters; what the build lacks is not compiled either.
        "--config-file=",
        "--strict",
        "--follow-imports=silent",
        "--ignore-missing-imports",
        "--explicit-package-bases",
        f"--cache-dir={out / 'cache'}",
    ]
    mypycify(
        [*options, *files],
        group_name=GROUP,
        multi_file=True,
        target_dir=str(out),
        include_runtime_files=True,
    )


def digest(root: Path) -> str:
    """As the import checks it; loaded by path, for SAGE is not installed yet."""
    file = root / "sage_prefect" / "common" / "compiled.py"
    spec = importlib.util.spec_from_file_location("compiled", file)
    if spec is None or spec.loader is None:
        sys.exit(f"{file} cannot be loaded.")
    module = sys.modules["compiled"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.sources_digest(root.joinpath(*PACKAGE.split("."))))


def module_source(names: list[str], digest_: str) -> str:
    """C source of the extension that holds the modules ``names``."""
    lasts = [name.rpartition(".")[2] for name in names]
    twice = {last for last in lasts if lasts.count(last) > 1}
    if twice:
        # PyInit_ functions bear the last part of a module's name alone.
        sys.exit(f"two modules of {PACKAGE} are called {', '.join(sorted(twice))}; rename one.")
    inits = "\n".join(
        f"extern PyObject *CPyInit_{c_name(name)}(void);\n"
        f"PyMODINIT_FUNC PyInit_{last}(void) {{ return init(CPyInit_{c_name(name)}); }}"
        for name, last in zip(names, lasts, strict=True)
    )
    listed = "".join(f'\n    "{name}",' for name in [SHARED, *names])
    return f"""\
#include <Python.h>

/* What the modules share comes first; mypyc's code looks for it among the imported modules. */
static PyObject *init(PyObject *(*module)(void)) {{
    PyObject *shared = PyImport_ImportModule("{SHARED}");
    if (shared == NULL) return NULL;
    Py_DECREF(shared);
    return module();
}}

{inits}

static const char *const modules[] = {{{listed}
    NULL,
}};

static struct PyModuleDef definition = {{
    PyModuleDef_HEAD_INIT, "sage_prefect._control_plane",
    "The compiled modules of {PACKAGE}.", -1, NULL, NULL, NULL, NULL, NULL,
}};

PyMODINIT_FUNC PyInit__control_plane(void) {{
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
