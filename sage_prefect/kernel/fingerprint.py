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
        _feed(digest, ["class", value.__module__, value.__qualname__, _source(value)])
    elif isinstance(value, types.FunctionType):
        _feed(digest, ["function", _code(value.__code__), value.__defaults__, value.__kwdefaults__])
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        _feed(digest, [_shallow(item) for item in closure])
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
    # A closure over a module or another function is named, not followed: cycles are common there.
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if isinstance(value, types.FunctionType):
        return ["function", _code(value.__code__)]
    return value


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""  # defined at a prompt: its name and the operator's version must do


def _state(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "__dict__"):
        return {key: item for key, item in vars(value).items() if not key.startswith("__")}
    return repr(value)
