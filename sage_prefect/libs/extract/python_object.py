"""The documentation of a module that exists only as compiled code, from its live objects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from types import ModuleType

from sage_prefect.libs.extract.python_source import Documented


def documented(module: ModuleType, *, private: bool = False) -> Iterator[Documented]:
    """What a compiled module documents: itself, its classes with their methods, its functions.

    Args:
        private: also those whose name begins with an underscore.
    """
    if module.__doc__:
        yield Documented("", "module", "", inspect.cleandoc(module.__doc__).strip())
    for name in sorted(vars(module)):
        value = vars(module)[name]
        hidden = name.startswith("__" if private else "_")
        if hidden or inspect.ismodule(value):
            continue
        if inspect.isclass(value):
            yield from _class(name, value)
        elif callable(value):
            yield from _entry(name, "function", name, value)


def _class(name: str, cls: type) -> Iterator[Documented]:
    yield from _entry(name, "class", name, cls)
    for inner in sorted(vars(cls)):
        # vars(), not dir(): what is inherited is documented where it is defined.
        if not inner.startswith("_"):
            yield from _entry(f"{name}.{inner}", "method", inner, vars(cls)[inner])


def _entry(name: str, kind: str, short: str, value: object) -> Iterator[Documented]:
    doc = getattr(value, "__doc__", None)
    if isinstance(doc, str) and doc.strip():
        yield Documented(name, kind, short + _signature(value), inspect.cleandoc(doc).strip())


_BOUND = re.compile(r"^\(\$(?:self|module|type)(?:, /)?(?:, )?")


def _signature(value: object) -> str:
    text = getattr(value, "__text_signature__", None)
    # Without one, the docstring's first line shows the call, by custom.
    return " ".join(_BOUND.sub("(", text).split()) if isinstance(text, str) else ""
