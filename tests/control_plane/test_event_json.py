from __future__ import annotations

import contextlib
import json
import math
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.errors import CorruptFileError
from sage_prefect.control_plane import events
from sage_prefect.control_plane.event_json import from_json, to_json
from sage_prefect.control_plane.events import (
    SCHEMA_VERSION,
    AbortBatch,
    Action,
    Arrival,
    Band,
    BatchPart,
    Cancel,
    DispatchBatch,
    Done,
    EngineGauges,
    EngineReport,
    EngineState,
    Event,
    RequestInfo,
    SetTimer,
    Timer,
)

TYPES = (*get_args(Event), *get_args(Action))
ALL = [v for v in vars(events).values() if isinstance(v, type) and is_dataclass(v)]

# Also what no sane driver sends: surrogates, numbers beyond 64 bits, NaN.
ANY_TEXT = st.text(st.characters(), max_size=20)
st.register_type_strategy(str, ANY_TEXT)


def everything() -> st.SearchStrategy[Any]:
    return st.one_of([st.from_type(kind) for kind in TYPES])


def same(one: Any, other: Any) -> bool:
    """Equality by type and field, under which NaN equals itself."""
    if type(one) is not type(other):
        return False
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


@given(everything())
def test_all_messages_come_back_as_they_were(message: Any) -> None:
    line = to_json(message)
    assert same(from_json(line), message)
    assert line.isascii()
    assert b"\n" not in line
    head = json.loads(line, parse_constant=pytest.fail)  # strict JSON: no NaN
    assert head["v"] == SCHEMA_VERSION
    assert head["type"] == type(message).__name__


def test_every_type_of_the_schema_is_reached() -> None:
    reached: set[type] = set()

    def walk(kind: Any) -> None:
        if isinstance(kind, type) and is_dataclass(kind):
            reached.add(kind)
            for inner in get_type_hints(kind).values():
                walk(inner)
        for argument in get_args(kind):
            walk(argument)

    for kind in TYPES:
        walk(kind)
    assert reached == set(ALL)


def test_the_form_is_fixed() -> None:
    info = RequestInfo("r", "m", band=Band.BATCH, deadline=math.inf, prefix=(1, 2**64 - 1))
    assert to_json(Arrival(info)) == (
        b'{"v":3,"type":"Arrival","request":{"request_id":"r","model":"m","kind":"chat",'
        b'"tenant":"default","band":3,"stream":false,"body_bytes":0,"prompt_tokens":0,'
        b'"deadline":"Infinity","prefix":[1,18446744073709551615]}}'
    )
    gauges = EngineGauges(kv_usage=math.nan)
    assert to_json(EngineReport("e", EngineState.READY, "", gauges)) == (
        b'{"v":3,"type":"EngineReport","engine":"e","state":"ready","detail":"",'
        b'"gauges":{"kv_usage":"NaN"}}'
    )
    assert to_json(DispatchBatch(1, "e", (BatchPart("r", 0, (("s", 4),)),))) == (
        b'{"v":3,"type":"DispatchBatch","batch_id":1,"engine":"e",'
        b'"parts":[{"request_id":"r","index":0,"copies":[["s",4]]}]}'
    )
    assert to_json(AbortBatch(1, "e", "why")) == (
        b'{"v":3,"type":"AbortBatch","batch_id":1,"engine":"e","reason":"why"}'
    )
    assert to_json(Timer()) == b'{"v":3,"type":"Timer"}'


def test_version_2_is_still_read() -> None:
    assert from_json(b'{"v":2,"type":"Timer"}') == Timer()
    old = b'{"v":2,"type":"Arrival","request":{"request_id":"r","model":"m","inputs":[3,4]}}'
    assert from_json(old) == Arrival(RequestInfo("r", "m", inputs=(3, 4)))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "no JSON object"),
        (b'{"type":"Timer"}', "version None"),
        (b'{"v":4,"type":"Timer"}', "newer SAGE"),
        (b'{"v":1,"type":"Timer"}', "reads 2 and 3"),
        (b'{"v":true,"type":"Timer"}', "version True"),
        (b'{"v":"2","type":"Timer"}', "version '2'"),
        (b'{"v":2}', "unknown type None"),
        (b'{"v":2,"type":["x"]}', "unknown type"),
        (b'{"v":2,"type":"RequestInfo"}', "Known: Abort, AbortBatch, Arrival"),
        (b'{"v":2,"type":"Cancel"}', "Cancel lacks the field 'request_id'"),
        (b'{"v":2,"type":"Cancel","request_id":"r","x":1}', "unknown field 'x'"),
        (b'{"v":2,"type":"Cancel","request_id":5}', "Cancel.request_id is 5; it must be a text"),
        (b'{"v":2,"type":"Done","request_id":"r","prompt_tokens":1.0}', "an integer"),
        (b'{"v":2,"type":"Done","request_id":"r","prompt_tokens":true}', "an integer"),
        (b'{"v":2,"type":"SetTimer","at":"soon"}', "a number"),
        (b'{"v":2,"type":"SetTimer","at":true}', "a number"),
        (b'{"v":2,"type":"Arrival","request":3}', "Arrival.request is 3; it must be an object"),
        (b'{"v":2,"type":"Arrival","request":{"request_id":"r","model":"m","kind":"dream"}}',
         "Arrival.request.kind is 'dream'"),
        (b'{"v":2,"type":"Arrival","request":{"request_id":"r","model":"m","band":7}}',
         "one of 0, 1, 2, 3"),
        (b'{"v":2,"type":"Arrival","request":{"request_id":"r","model":"m","band":true}}', "Band"),
        (b'{"v":2,"type":"Arrival","request":{"request_id":"r","model":"m","prefix":1}}',
         "an array"),
        (b'{"v":2,"type":"EngineReport","engine":"e","state":"asleep"}', "one of ready, cold"),
        (b'{"v":2,"type":"EngineReport","engine":"e","state":[]}', "one of ready, cold"),
        (b'{"v":2,"type":"DispatchBatch","batch_id":1,"engine":"e","parts":'
         b'[{"request_id":"r","index":0,"copies":[["s"]]}]}', "an array of 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(line: bytes, part: str) -> None:
    with pytest.raises(CorruptFileError) as caught:
        from_json(line)
    assert part in str(caught.value)
    assert len(str(caught.value)) < 600


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["v", "type", "request", "state"]), inner)
        ),
    ),
    st.sampled_from([kind.__name__ for kind in TYPES]),
)
def test_damaged_lines_give_no_other_error(value: Any, name: str) -> None:
    given_ = {**value, "v": 2, "type": name} if isinstance(value, dict) else value
    with contextlib.suppress(CorruptFileError):
        from_json(json.dumps(given_))


def test_counts_beyond_64_bits_stay_exact() -> None:
    message = Done("r", 10**30, -(10**20))
    assert from_json(to_json(message)) == message
    with pytest.raises(ValueError, match="digits"):
        to_json(Done("r", 10**5000))


def test_a_time_is_exact() -> None:
    for at in (0.1 + 0.2, 1e-320, 1.7976931348623157e308, 12345.678901234567):
        assert from_json(to_json(SetTimer(at))) == SetTimer(at)
    assert from_json(to_json(Cancel("\ud800"))) == Cancel("\ud800")
