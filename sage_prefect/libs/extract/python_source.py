"""The documentation in a Python source file, without importing it.

The syntax tree gives docstrings and signatures; nothing of the file is run.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Documented:
    """One documented thing.

    Args:
        name: dotted name inside the module, such as ``Path.glob``; "" for the module itself.
        kind: ``module``, ``class``, ``function`` or ``method``.
        signature: ``glob(self, pattern)`` without the dotted part before it.
        doc: its docstring, cleaned of indentation.
    """

    name: str
    kind: str
    signature: str
    doc: str


@dataclass
class ModuleOutline:
    """What a module documents, exports and takes from elsewhere.

    Args:
        documented: in the order of the file.
        exported: names in ``__all__``, or None when there is none that can be read.
        imports: per module that is imported from, the names taken and what they are called here
            (``{"*": "*"}`` for all); relative ones keep their dots.
    """

    documented: list[Documented] = field(default_factory=list)
    exported: frozenset[str] | None = None
    imports: dict[str, dict[str, str]] = field(default_factory=dict)

    def gives(self, name: str, taken: Collection[str]) -> bool:
        """Whether ``from module import <taken>`` takes the (dotted) ``name``."""
        first = name.partition(".")[0]
        if first in taken:
            return True
        if "*" not in taken:
            return False
        return first in self.exported if self.exported is not None else not first.startswith("_")


_ONE_AT_A_TIME = threading.Lock()
_ATTEMPTS = 20


def parse(source: str | bytes) -> ast.Module:
    """``ast.parse`` that two threads may call at once.

    CPython before 3.13 counts the depth of the tree it builds in a variable that all threads share,
    and raises SystemError when they meet (https://github.com/python/cpython/issues/106905). The
    lock keeps our own threads apart; another library's parse is met by trying again.

    Raises:
        SyntaxError, ValueError: as ``ast.parse``.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with _ONE_AT_A_TIME:
                return ast.parse(source)
        except SystemError:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def outline(source: str | bytes) -> ModuleOutline:
    """Read a module's outline.

    Raises:
        SyntaxError: this Python cannot parse the source.
        ValueError: it holds null bytes.
    """
    tree = parse(source)
    found = ModuleOutline()
    doc = _docstring(tree)
    if doc:
        found.documented.append(Documented("", "module", "", doc))
    found.documented.extend(_definitions(tree.body, ""))
    found.documented.extend(_bound_methods(tree.body, found.documented))
    exported: set[str] | None = None
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            taken = {alias.name: alias.asname or alias.name for alias in node.names}
            found.imports.setdefault(origin, {}).update(taken)
        elif isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                exported = (exported or set()) | _texts(node.value)
            elif ast.unparse(targets[0]) == "sys.modules[__name__]" and node.value is not None:
                # The module puts another one in its place: collections.abc from Python 3.13 on.
                found.imports.setdefault(ast.unparse(node.value), {})["*"] = "*"
    found.exported = frozenset(exported) if exported else None
    return found


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool = False) -> str:
    """``(path, *, mode='r')``; a method's first argument is left out."""
    arguments = node.args
    if method and (arguments.posonlyargs or arguments.args):
        first = list(arguments.posonlyargs or arguments.args)[1:]
        arguments = ast.arguments(
            posonlyargs=first if arguments.posonlyargs else [],
            args=arguments.args if arguments.posonlyargs else first,
            vararg=arguments.vararg,
            kwonlyargs=arguments.kwonlyargs,
            kw_defaults=arguments.kw_defaults,
            kwarg=arguments.kwarg,
            defaults=arguments.defaults[-max(_positional(arguments) - 1, 0) :]
            if _positional(arguments) > 1
            else [],
        )
    return f"({ast.unparse(arguments)})"


def _positional(arguments: ast.arguments) -> int:
    return len(arguments.posonlyargs) + len(arguments.args)


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[Documented]:
    for node in _statements(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = _docstring(node)
            decorators = {_decorator(decorator) for decorator in node.decorator_list}
            if doc and not node.name.startswith("_") and not decorators & {"setter", "deleter"}:
                shown = signature(node, method=bool(prefix) and "staticmethod" not in decorators)
                if decorators & {"property", "cached_property"}:
                    shown = ""
                kind = "method" if prefix else "function"
                yield Documented(prefix + node.name, kind, node.name + shown, doc)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _class(node, prefix)


def _bound_methods(body: list[ast.stmt], known: list[Documented]) -> list[Documented]:
    """Functions that are methods of a hidden instance: ``_inst = Random(); seed = _inst.seed``."""
    methods = {entry.name: entry for entry in known if entry.kind == "method"}
    classes: dict[str, str] = {}
    found = []
    for node in _statements(body):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name, value = node.targets[0].id, node.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
            classes[name] = value.func.id
        elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
            method = methods.get(f"{classes.get(value.value.id)}.{value.attr}")
            if method is not None and not name.startswith("_"):
                called = name + method.signature[len(value.attr) :]
                found.append(Documented(name, "function", called, method.doc))
    return found


def _class(node: ast.ClassDef, prefix: str) -> Iterator[Documented]:
    docs = [_docstring(node)]
    shown = ""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            shown = signature(inner, method=True)
            docs.append(_docstring(inner))
    doc = "\n\n".join(text for text in docs if text)
    if doc:
        yield Documented(prefix + node.name, "class", node.name + shown, doc)
    yield from _definitions(node.body, f"{prefix}{node.name}.")


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return (ast.get_docstring(node) or "").strip()


def _decorator(node: ast.expr) -> str:
    """``setter`` of ``@name.setter``, ``cached_property`` of ``@functools.cached_property``."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, and those under its ``if`` and ``try``."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements(node.body)
            yield from _statements(node.orelse)
        elif isinstance(node, ast.Try):
            for part in (node.body, *(h.body for h in node.handlers), node.orelse, node.finalbody):
                yield from _statements(part)
        else:
            yield node


def _texts(node: ast.AST | None) -> set[str]:
    """String literals in a list or tuple; in ``a.__all__ + ["b"]`` those that can be read."""
    if node is None:
        return set()
    return {
        inner.value
        for inner in ast.walk(node)
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
    }
