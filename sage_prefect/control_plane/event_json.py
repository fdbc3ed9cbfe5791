"""Events and actions as JSON: one object each, with ``type`` and the schema's version ``v``.

The codec follows the types of :mod:`~sage_prefect.control_plane.events`, so that a new field or
type needs nothing here. Conventions: enums by value, tuples as arrays, NaN and the infinities as
``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` (JSON has no numbers for them); a field that is None
or empty, and is so by default, is left out.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeAlias, Union, cast, get_args, get_origin, get_type_hints

from sage_prefect.common.errors import CorruptFileError
from sage_prefect.control_plane.events import (
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    Action,
    Event,
)

Encoder: TypeAlias = Callable[[Any], Any] | None
"""Python value to JSON value; None: they are the same."""
Decoder: TypeAlias = Callable[[Any, str], Any]
"""JSON value and its place, for errors, to Python value."""

_UNIONS = (Union, type(int | str))
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(message: Event | Action) -> bytes:
    """One line of JSON in ASCII, without its end.

    Raises:
        ValueError: a number is too long to be written (Python's limit is 4,300 digits).
    """
    return dump({"v": SCHEMA_VERSION, **to_object(message)})


def from_json(line: bytes | str) -> Event | Action:
    """Read what :func:`to_json` wrote.

    Raises:
        CorruptFileError: it is no JSON object, of another version, of an unknown type, or a field
            is missing, unknown or of a wrong kind; says which.
    """
    value = load(line)
    check_version(value.pop("v", None))
    return cast("Event | Action", _decoded(value, "event or action", _DECODERS))


def to_object(message: Event | Action) -> dict[str, Any]:
    """The message as a JSON object with ``type`` and without ``v``.

    Raises:
        TypeError: it is neither an event nor an action.
    """
    encode = _ENCODERS.get(type(message))
    if encode is None:
        raise TypeError(f"{_shown(message)} is neither an event nor an action.")
    return {"type": type(message).__name__, **encode(message)}


def event_of(value: Any) -> Event:
    """The event that :func:`to_object` made ``value`` of.

    Raises:
        CorruptFileError: as :func:`from_json`; also for an action.
    """
    return cast(Event, _decoded(value, "event", _EVENT_DECODERS))


def action_of(value: Any) -> Action:
    """The action that :func:`to_object` made ``value`` of.

    Raises:
        CorruptFileError: as :func:`from_json`; also for an event.
    """
    return cast(Action, _decoded(value, "action", _ACTION_DECODERS))


def number_to_json(value: float) -> float | str:
    """A number that may be NaN or infinite, in the form that the schema's numbers have."""
    if math.isfinite(value):
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def number_of(value: Any, place: str) -> float:
    """The number that :func:`number_to_json` made ``value`` of.

    Raises:
        CorruptFileError: it is none; names ``place``.
    """
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    return cast(float, _refuse(value, place, "a number"))


def dump(value: Mapping[str, Any]) -> bytes:
    """Compact JSON in ASCII; numbers that are not finite are refused with ValueError."""
    return _JSON.encode(value).encode("ascii")


def load(line: bytes | str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        CorruptFileError: it is none.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"this is not JSON ({error}): {_shown(line)}.") from None
    if not isinstance(value, dict):
        raise CorruptFileError(f"this is no JSON object: {_shown(line)}.")
    return value


def check_version(version: Any) -> None:
    """Refuse what was written under another schema.

    Raises:
        CorruptFileError: ``version`` is none that this SAGE reads.
    """
    if isinstance(version, int) and not isinstance(version, bool) and version in READABLE_VERSIONS:
        return
    if isinstance(version, int) and version > SCHEMA_VERSION:
        hint = "It was written by a newer SAGE; read it with that one."
    else:
        hint = "Read it with the SAGE that wrote it."
    raise CorruptFileError(
        f"this has version {_shown(version)} of the schema of events; this SAGE reads "
        f"{' and '.join(map(str, READABLE_VERSIONS))}.",
        hint=hint,
    )


# -- the codec, made from the types ---------------------------------------------------------

_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _encoder(kind: Any) -> Encoder:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (str, int, bool) or origin is Literal:
        return None
    if kind is float:
        return number_to_json
    if origin in _UNIONS:
        encode = _encoder(_some(arguments))
        return None if encode is None else lambda v: None if v is None else encode(v)
    if origin is tuple:
        if arguments[-1] is not Ellipsis:
            encoders = [_encoder(argument) for argument in arguments]
            return lambda v: [e(i) if e else i for e, i in zip(encoders, v, strict=True)]
        each = _encoder(arguments[0])
        return list if each is None else lambda v: [each(item) for item in v]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return lambda v: v.value
    return _object_encoder(kind)


def _object_encoder(kind: type) -> Callable[[Any], dict[str, Any]]:
    hints = get_type_hints(kind)
    plan = [(f.name, _encoder(hints[f.name]), f.default in (None, ())) for f in fields(kind)]

    def encode(message: Any) -> dict[str, Any]:
        out = {}
        for name, encoder, may_lack in plan:
            value = getattr(message, name)
            if may_lack and (value is None or value == ()):
                continue
            out[name] = value if encoder is None else encoder(value)
        return out

    return encode


def _decoder(kind: Any) -> Decoder:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in _UNIONS:
        some = _decoder(_some(arguments))
        return lambda v, at: None if v is None else some(v, at)
    if origin is Literal:
        return lambda v, at: v if v in arguments else _refuse(v, at, f"one of {arguments}")
    if origin is tuple:
        return _tuple_decoder(arguments)
    if kind is float:
        return number_of
    if kind is int:
        return lambda v, at: v if type(v) is int else _refuse(v, at, "an integer")
    if kind in (str, bool):
        words = {str: "a text", bool: "true or false"}[kind]
        return lambda v, at: v if type(v) is kind else _refuse(v, at, words)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum_decoder(kind)
    return _object_decoder(kind)


def _tuple_decoder(arguments: tuple[Any, ...]) -> Decoder:
    if arguments[-1] is Ellipsis:
        item = _decoder(arguments[0])

        def decode_all(value: Any, at: str) -> Any:
            if not isinstance(value, list):
                return _refuse(value, at, "an array")
            return tuple([item(one, at) for one in value])

        return decode_all
    decoders = [_decoder(argument) for argument in arguments]

    def decode_each(value: Any, at: str) -> Any:
        if not isinstance(value, list) or len(value) != len(decoders):
            return _refuse(value, at, f"an array of {len(decoders)}")
        return tuple([decode(one, at) for decode, one in zip(decoders, value, strict=True)])

    return decode_each


def _enum_decoder(kind: type[enum.Enum]) -> Decoder:
    def decode(value: Any, at: str) -> Any:
        try:
            return kind(value) if type(value) is not bool else _refuse(value, at, kind.__name__)
        except ValueError:
            return _refuse(value, at, f"one of {', '.join(str(one.value) for one in kind)}")

    return decode


def _object_decoder(kind: type) -> Decoder:
    if not is_dataclass(kind):
        raise TypeError(f"the schema has a field of {kind!r}, which JSON knows no form of. A bug.")
    hints = get_type_hints(kind)
    decoders = {f.name: _decoder(hints[f.name]) for f in fields(kind)}
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}

    def decode(value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            return _refuse(value, at, "an object")
        for name in value:
            if name not in decoders:
                raise CorruptFileError(f"{at} has an unknown field {_shown(name)}.")
        lacking = needed.difference(value)
        if lacking:
            raise CorruptFileError(f"{at} lacks the field {min(lacking)!r}.")
        return kind(**{name: decoders[name](item, f"{at}.{name}") for name, item in value.items()})

    return decode


def _some(arguments: tuple[Any, ...]) -> Any:
    """X of ``X | None``."""
    kinds = [argument for argument in arguments if argument is not type(None)]
    if len(kinds) != 1:
        raise TypeError(f"the schema has a field of {arguments}, which JSON cannot tell. A bug.")
    return kinds[0]


def _decoded(value: Any, what: str, decoders: Mapping[str, Decoder]) -> Any:
    if not isinstance(value, dict):
        raise CorruptFileError(f"an {what} is {_shown(value)}; it must be an object.")
    content = dict(value)
    name = content.pop("type", None)
    decode = decoders.get(name) if isinstance(name, str) else None
    if decode is None:
        raise CorruptFileError(
            f"unknown type {_shown(name)} of an {what}.",
            hint=f"Known: {', '.join(sorted(decoders))}.",
        )
    return decode(content, str(name))


def _refuse(value: Any, at: str, expected: str) -> Any:
    raise CorruptFileError(f"{at} is {_shown(value)}; it must be {expected}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_EVENTS: tuple[type, ...] = get_args(Event)
_ACTIONS: tuple[type, ...] = get_args(Action)
_ENCODERS = {kind: _object_encoder(kind) for kind in _EVENTS + _ACTIONS}
_EVENT_DECODERS = {kind.__name__: _object_decoder(kind) for kind in _EVENTS}
_ACTION_DECODERS = {kind.__name__: _object_decoder(kind) for kind in _ACTIONS}
_DECODERS = {**_EVENT_DECODERS, **_ACTION_DECODERS}
