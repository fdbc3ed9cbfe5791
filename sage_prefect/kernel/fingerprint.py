"""Content keys: the same code, parameters and input give the same key in every process."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import types
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sage_prefect.kernel.resources import Resources


def fingerprint(value: Any) -> str:
    """A hex key of ``value`` that does not depend on the process, hash seed or dict order."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Tagged, length-prefixed, so that ``["ab"]`` and ``["a", "b"]`` differ."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        data = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(f"{type(value).__name__}:{len(data)}:".encode() + data)
    elif isinstance(value, Mapping):
        digest.update(f"map:{len(value)}:".encode())
        for key in sorted(value, key=repr):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"list:{len(value)}:".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, (set, frozenset)):
        _feed(digest, sorted(fingerprint(item) for item in value))
    elif isinstance(value, os.PathLike):
        _feed(digest, ["path", os.fspath(value)])
    elif isinstance(value, functools.partial):
        _feed(digest, ["partial", value.func, value.args, value.keywords])
    elif isinstance(value, type):
        _feed(digest, ["class", value.__module__, value.__qualname__, _members(value)])
    elif isinstance(value, types.FunctionType):
        _feed(digest, _function(value))
    elif isinstance(value, (types.BuiltinFunctionType, types.MethodType)):
        _feed(digest, ["callable", value.__module__ or "", value.__qualname__])
    elif hasattr(value, "content_key"):
        _feed(digest, ["keyed", value.content_key()])
    elif isinstance(value, Resources):
        _feed(digest, ["resources", value.counters()])
    elif isinstance(value, (pa.Table, pa.RecordBatch)):
        _feed(digest, ["arrow", value.schema.to_string(), value.to_pylist()])
    else:
        _feed(digest, ["object", type(value).__module__, type(value).__qualname__, _state(value)])


def _code(code: types.CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, types.CodeType) else c for c in code.co_consts]
    return [code.co_code, constants, list(code.co_names), list(code.co_varnames)]


def _shallow(value: Any) -> Any:
    # A closure over a module, class or function is named, not followed: cycles are common there.
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if isinstance(value, types.FunctionType):
        return ["function", _code(value.__code__)]
    if isinstance(value, type):
        return ["class", value.__module__, value.__qualname__]
    return value


def _function(function: types.FunctionType) -> list[Any]:
    closure = []
    for cell in function.__closure__ or ():
        try:
            closure.append(_shallow(cell.cell_contents))
        except ValueError:  # not filled yet: a class being defined
            closure.append(None)
    code = _code(function.__code__)
    constants = _global_data(function.__code__, function.__globals__)
    return ["function", code, function.__defaults__, function.__kwdefaults__, closure, constants]


def _is_constant(value: Any) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return all(_is_constant(item) for item in value)
    return isinstance(value, (bool, int, float, str, bytes, os.PathLike))


def _global_data(code: types.CodeType, names: Mapping[str, Any]) -> dict[str, Any]:
    # Module-level constants (a template, a path) are part of what a function does. Lists and dicts
    # are left out: often they are caches, which change while it runs.
    found = {name: names[name] for name in code.co_names if _is_constant(names.get(name))}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _global_data(constant, names)
    return found


def _members(cls: type) -> list[Any]:
    """Code and plain attributes of a class and its bases, save those of this library's kernel."""
    found: list[Any] = []
    for base in cls.__mro__:
        if base is object or base.__module__.startswith("sage_prefect.kernel."):
            continue
        for name, member in sorted(vars(base).items()):
            function = inspect.unwrap(member) if callable(member) else member
            if isinstance(member, (staticmethod, classmethod)):
                function = member.__func__
            elif isinstance(member, property):
                function = member.fget
            if isinstance(function, types.FunctionType):
                found.append([name, _function(function)])
            elif not name.startswith("__") and isinstance(
                member, (str, bytes, int, float, tuple, frozenset)
            ):
                found.append([name, member])
    return found


def _state(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "__dict__"):
        return {key: item for key, item in vars(value).items() if not key.startswith("__")}
    return repr(value)
