"""Fuzz targets: the gateway's readers of bytes that engines and clients send, each with what must
hold for any input.

``./manage.sh fuzz [--seconds N] [TARGET ...]`` explores by coverage (atheris, the interpreted
sources) and then tries what it found on the compiled ones. ``test_fuzz.py`` runs the seeds, kept
findings and a fixed number of mutations of each target with every test run.

A target takes bytes. The first ones steer (which family, where the stream is cut), the rest is what
the peer sent. It raises when something is wrong; :class:`Skip` never counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import orjson

from sage_gateway.answer_assembly import AnswerAssembly
from sage_gateway.client_exchange import ClientExchange
from sage_gateway.connection_limits import ConnectionLimits
from sage_gateway.dialects.base import MalformedAnswer, Stamp, StreamRelay, UnusableAnswer
from sage_gateway.dialects.messages_answer import whole_message
from sage_gateway.dialects.messages_stream import MessagesStream
from sage_gateway.dialects.native_stream import NativeMessages, NativeResponses
from sage_gateway.dialects.responses_answer import whole_response
from sage_gateway.dialects.responses_stream import ResponsesStream
from sage_gateway.embedding_answer import BadAnswer, read_vectors
from sage_gateway.errors import ClientGone, HttpError
from sage_gateway.http_protocol import limited_protocol
from sage_gateway.json_splice import splice
from sage_gateway.routes import INFERENCE_ROUTES
from sage_gateway.sse_relay import SseRelay
from sage_gateway.upstream import Exchange, Timeouts, UpstreamConnection, UpstreamError
from sage_gateway.upstream_answer import wrapped_error
from sage_gateway.usage import usage_in_tail

HERE = Path(__file__).parent
KEPT = HERE / "findings"
ASKED = {"model": "m", "input": "x"}
STAMP = Stamp("t1", 1_700_000_000)
Target = Callable[[bytes], None]


def check(holds: object, what: str, *shown: object) -> None:
    """An assertion that optimised bytecode keeps."""
    if not holds:
        raise AssertionError(f"{what}: {', '.join(repr(item)[:300] for item in shown)}")


def pieces(data: bytes, steer: int) -> list[bytes]:
    """``data`` cut at places that ``steer`` decides; 0: not cut."""
    if not steer:
        return [data] if data else []
    chance = random.Random(steer)
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(steer % 8 + 1))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]


# -- streams of engines ---------------------------------------------------------------------

FAMILIES: tuple[Callable[[], StreamRelay], ...] = (
    lambda: SseRelay(withhold_usage=False),
    lambda: SseRelay(withhold_usage=True),
    NativeMessages,
    NativeResponses,
    lambda: MessagesStream("m", STAMP),
    lambda: ResponsesStream(ASKED, STAMP),
)
PASSES_BYTES = (0, 2, 3)


def relayed(
    family: int, parts: list[bytes]
) -> tuple[StreamRelay, bytes, bytes, MalformedAnswer | None]:
    """The relay, what it said, what it held back to the end, and why it refused."""
    relay, out, rest = FAMILIES[family](), b"", b""
    try:
        for part in parts:
            out += relay.feed(part)
        rest = relay.rest()
    except MalformedAnswer as error:
        return relay, out, rest, error
    return relay, out, rest, None


def streams(data: bytes) -> None:
    """Whatever an engine streams and however it is cut: one result, nothing lost, nothing but
    MalformedAnswer raised, and a stream that breaks ends with an event that says so."""
    if len(data) < 2:
        return
    family, steer, stream = data[0] % len(FAMILIES), data[1], data[2:]
    relay, said, rest, refused = relayed(family, [stream] if stream else [])
    cut, said_cut, rest_cut, refused_cut = relayed(family, pieces(stream, steer))
    out, out_cut = said + rest, said_cut + rest_cut
    check((refused is None) == (refused_cut is None), "the cut decides", refused, refused_cut)
    if refused is None:
        check(out == out_cut, "the cut changes what is said", out, out_cut)
        same = (relay.done, relay.complete, relay.usage) == (cut.done, cut.complete, cut.usage)
        check(same, "the cut changes what is known", relay.usage, cut.usage)
        if family in PASSES_BYTES:
            check(out == stream, "bytes were lost", out, stream)
    whole = said_cut + cut.broken_off(502, "The engine fell.")
    last = [event for event in _events(whole) if event.get("data")][-1]
    told = orjson.loads(last["data"])
    check("The engine fell." in json.dumps(told), "a broken stream says nothing", told)


def _events(stream: bytes) -> Iterator[dict[str, str]]:
    """As the standard reads server-sent events."""
    text = stream.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    for block in text.split("\n\n"):
        event: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if name:
                joined = [event[name]] if name in event else []
                event[name] = "\n".join([*joined, value.removeprefix(" ")])
        yield event


def assembled(data: bytes) -> None:
    """A stream put together: the same however it is cut; only MalformedAnswer; bounded memory."""
    if not data:
        return
    results: list[tuple[str, object]] = []
    for parts in ([data[1:]], pieces(data[1:], data[0])):
        assembly = AnswerAssembly()
        try:
            for part in parts:
                assembly.feed(part)
            answer = assembly.answer()
        except MalformedAnswer:
            results.append(("refused", None))
            continue
        check(isinstance(orjson.loads(answer), dict), "no object", answer)
        bound = 1000 * (len(data) + 100)
        check(len(answer) < bound, "a small stream became a big answer", len(answer))
        results.append(("whole", (answer, assembly.usage, assembly.done, assembly.complete)))
    check(results[0] == results[1], "the cut decides", *results)


def answers(data: bytes) -> None:
    """Whole answers and errors of engines: translated, or refused in so many words."""
    for whole in (
        lambda: whole_message(data, "m", STAMP),
        lambda: whole_response(data, ASKED, STAMP),
    ):
        with contextlib.suppress(MalformedAnswer, UnusableAnswer):
            check(isinstance(orjson.loads(whole()), dict), "no object", data)
    usage_in_tail(data)
    error = wrapped_error("e", 500, data)
    check(isinstance(orjson.loads(error.body), dict), "no object", error.body)


def vectors(data: bytes) -> None:
    """Embeddings: each vector is the engine's bytes at its own place, or the answer is refused."""
    if not data:
        return
    count = data[0] % 4 + 1
    try:
        found = read_vectors(data[1:], count)
    except BadAnswer:
        return
    whole = orjson.loads(data[1:])
    check(
        [orjson.loads(one) for one in found.vectors]
        == [item["embedding"] for item in whole["data"]],
        "vectors are not at their places",
        data,
    )


def splices(data: bytes) -> None:
    """A client's body with other fields: what a JSON parser would make of it, else untouched."""
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    if not isinstance(parsed, dict):
        return
    changes = {"model": "there", "stream_options": {"include_usage": True}}
    for drop in (None, "priority"):
        told = orjson.loads(splice(data, parsed, changes, drop))
        wanted = {**{k: v for k, v in parsed.items() if k != drop}, **changes}
        check(told == wanted, "not what was asked", told, wanted)


# -- HTTP -------------------------------------------------------------------------------------


class Wire:
    """A transport without a socket: remembers what is written and how it ended."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = ""
        self.reading = True

    def write(self, data: bytes) -> None:
        if not self.ended:
            self.written += data

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def is_closing(self) -> bool:
        return bool(self.ended)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def set_write_buffer_limits(self, *args: Any, **kwargs: Any) -> None:
        return None

    def set_protocol(self, protocol: Any) -> None:
        return None


_loop: list[asyncio.AbstractEventLoop] = []


def loop() -> asyncio.AbstractEventLoop:
    """One loop for all runs; asyncio's, for it needs no thread and no pipe of its own."""
    if not _loop:
        _loop.append(asyncio.new_event_loop())
    return _loop[0]


def _turns(of: asyncio.AbstractEventLoop, count: int = 3) -> None:
    """Let callbacks run that are due."""
    for _ in range(count):
        of.call_soon(of.stop)
        of.run_forever()


def engines(data: bytes) -> None:
    """An engine's HTTP answer: read whole, or failed with a cause; never both, never more."""
    if len(data) < 2:
        return
    seen = []
    for parts in ([data[2:]] if data[2:] else [], pieces(data[2:], data[0])):
        seen.append(_answered(parts, torn=bool(data[1] & 1)))
    # Empty lines after an answer close the connection only if they come by themselves.
    check(seen[0][:3] == seen[1][:3], "the cut decides", *seen)


def _answered(parts: list[bytes], *, torn: bool) -> tuple[object, ...]:
    free: list[object] = []
    gone: list[object] = []
    connection = UpstreamConnection(loop(), free.append, gone.append)
    wire: Any = Wire()
    connection.connection_made(wire)
    exchange = connection.send([b"POST / HTTP/1.1\r\n\r\n"], Timeouts())
    for part in parts:
        if wire.ended:
            break
        connection.data_received(part)
    reusable = bool(free) and not wire.ended
    connection.connection_lost(ConnectionResetError() if torn else None)
    check(len(gone) == 1, "the pool hears of the end once", gone)
    status, body, error = _read(exchange)
    if error is None:
        check(200 <= status < 1000, "a status that is none", status)
        if exchange.content_length is not None and not exchange.chunked and status != 204:
            fits = len(body) == exchange.content_length or (not body and status == 304)
            check(fits, "a body of another length", len(body), exchange.content_length)
    else:
        check(not reusable, "a failed connection is used again", error)
        body = b""  # how much came before it is the cut's business
    return status if error is None else 0, body, None if error is None else error.cause, reusable


def _read(exchange: Exchange) -> tuple[int, bytes, UpstreamError | None]:
    body = b""

    async def read() -> None:
        nonlocal body
        await exchange.head()
        while piece := await exchange.read():
            body += piece

    try:
        loop().run_until_complete(read())
    except UpstreamError as error:
        return exchange.status, body, error
    return exchange.status, body, None


class _Server:
    """What uvicorn's protocol needs of its server."""

    def __init__(self) -> None:
        from uvicorn.config import Config
        from uvicorn.server import ServerState

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        self.config = Config(app, log_config=None, lifespan="off", access_log=False)
        self.config.load()
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"today")]


_server: list[_Server] = []


def clients(data: bytes) -> None:
    """A client's bytes: what is served is what a second parser reads too (no smuggling), and
    whatever comes is answered in HTTP or the connection ends."""
    if not data:
        return
    steer, sent = data[0], data[1:]
    if not _server:
        _server.append(_Server())
    server = _server[0]
    served: list[tuple[bytes, bytes]] = []

    async def serve(exchange: ClientExchange) -> None:
        try:
            body = await exchange.body(max_bytes=1 << 20, timeout_s=30)
        except HttpError as error:
            exchange.error(error)
            return
        except ClientGone:
            return
        served.append((exchange.route.path.encode(), body))
        exchange.whole(200, b"{}")

    made = limited_protocol(4096, 30, serve, INFERENCE_ROUTES, ConnectionLimits(0, 0))
    protocol = made(config=server.config, server_state=server.state, app_state={}, _loop=loop())
    wire: Any = Wire()
    protocol.connection_made(wire)
    for part in pieces(sent, steer):
        if wire.ended:
            break
        protocol.data_received(part)
        _turns(loop())
    _turns(loop(), 6)
    protocol.connection_lost(None)
    _turns(loop(), 6)
    wanted, complaint = _reference(sent)
    for mine, theirs in zip(served, wanted, strict=False):
        check(mine == theirs, "served what was not sent", mine, theirs)
    # llhttp takes more than one space and empty lines before a request: neither moves a boundary.
    if "request line" not in complaint:
        check(len(served) <= len(wanted), "served more than was sent", served, wanted, complaint)
    _check_answers(wire.written)


def _reference(sent: bytes) -> tuple[list[tuple[bytes, bytes]], str]:
    """Requests to inference routes, as h11 reads them, up to one that it refuses, and why."""
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    found: list[tuple[bytes, bytes]] = []
    try:
        peer.receive_data(sent)
        while True:
            event = peer.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                path = _path(head.target)
                if head.method == b"POST" and path in INFERENCE_ROUTES:
                    found.append((path.encode(), body))
                peer.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                peer.send(h11.EndOfMessage())
                if peer.our_state is not h11.DONE:
                    return found, "the connection is at its end"
                peer.start_next_cycle()
            else:
                return found, ""
    except h11.RemoteProtocolError as error:
        return found, str(error)


def _path(target: bytes) -> str:
    from urllib.parse import unquote, urlsplit

    with contextlib.suppress(ValueError):
        return unquote(urlsplit(target.decode("latin-1")).path)
    return ""


def _check_answers(written: bytes) -> None:
    """All that was written is whole answers of HTTP/1.1."""
    rest = written
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        check(head.startswith(b"HTTP/1.1 "), "no status line", head)
        if head.startswith(b"HTTP/1.1 100"):
            continue
        length = [
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ]
        if head.startswith(b"HTTP/1.1 204"):
            continue
        check(len(length) == 1 and len(rest) >= length[0], "an answer is cut", head)
        rest = rest[length[0] :]


TARGETS: dict[str, Target] = {
    "streams": streams,
    "assembled": assembled,
    "answers": answers,
    "vectors": vectors,
    "splices": splices,
    "engines": engines,
    "clients": clients,
}

# -- inputs -----------------------------------------------------------------------------------


def _event(content: object, kind: str = "") -> bytes:
    head = f"event: {kind}\n" if kind else ""
    return head.encode() + b"data: " + orjson.dumps(content) + b"\n\n"


def _chunk(finish: str | None = None, **delta: object) -> bytes:
    return _event({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


_CALL = {"index": 0, "id": "call", "function": {"name": "f", "arguments": '{"a":1}'}}
_COUNTS = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
_CHAT = (
    b": ping\n\n"
    + _chunk(role="assistant", content="")
    + _chunk(reasoning_content="hm")
    + _chunk(content="Hello\n\n")
    + _chunk(tool_calls=[_CALL])
    + _chunk("tool_calls")
    + _event({"choices": [], "usage": _COUNTS})
    + b"data: [DONE]\n\n"
)
_MESSAGES = (
    _event({"type": "message_start", "message": {"usage": {"input_tokens": 3}}}, "message_start")
    + _event({"type": "message_delta", "usage": {"output_tokens": 2}}, "message_delta")
    + _event({"type": "message_stop"}, "message_stop")
)
_RESPONSES = _event(
    {"type": "response.created", "sequence_number": 0, "response": {"id": "r"}}
) + _event({"type": "response.completed", "sequence_number": 1, "response": {"usage": _COUNTS}})
_ANSWER = orjson.dumps(
    {
        "id": "c",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi", "tool_calls": [_CALL]},
                "finish_reason": "stop",
            }
        ],
        "usage": {**_COUNTS, "prompt_tokens_details": {"cached_tokens": 1}},
    }
)
_VECTORS = orjson.dumps(
    {"data": [{"index": i, "embedding": [0.5, 1e-3]} for i in range(2)], "usage": _COUNTS}
)
_BODY = orjson.dumps(
    {"model": "m", "messages": [{"role": "user", "content": 'a"}\\'}], "priority": 1, "n": [{}]}
)


def _post(body: bytes, *lines: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"host: x", *lines))
    return b"POST " + path + b" HTTP/1.1\r\n" + head + b"\r\n" + body


_SIZED = _post(b"{}", b"content-length: 2", b"authorization: Bearer k")
_CHUNKED = _post(b"2\r\n{}\r\n0\r\n\r\n", b"transfer-encoding: chunked")
_GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
SEEDS: dict[str, tuple[bytes, ...]] = {
    "streams": tuple(
        bytes([family, 7]) + stream
        for family in range(len(FAMILIES))
        for stream in (_CHAT, _CHAT.replace(b"\n\n", b"\r\n\r\n"), _MESSAGES, _RESPONSES)
    ),
    "assembled": (b"\x05" + _CHAT,),
    "answers": (
        _ANSWER,
        b'{"error":{"message":"no","code":5}}',
        b'{"detail":[{"msg":"x"}]}',
        b"bad",
    ),
    "vectors": (b"\x01" + _VECTORS, b'\x00{"data":[{"embedding":"AAAA"}]}'),
    "splices": (
        _BODY,
        b'{"model":"m","model":"n","mod\\u0065l":1}',
        b'{ "a" : [1 , {"model":2}] }',
    ),
    "engines": (
        b"\x03\x00HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: a/b\r\n\r\n{}",
        b"\x03\x00HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"\x03\x00HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 429 Slow\r\nretry-after: 3\r\n\r\nwait",
        b"\x03\x01HTTP/1.1 204 No\r\nconnection: close\r\n\r\n",
    ),
    "clients": (
        b"\x05" + _SIZED * 2 + _GET,
        b"\x00" + _SIZED + _CHUNKED,
        b"\x02"
        + _post(b"", b"content-length: 0", b"expect: 100-continue", path=b"/v1/embeddings?a"),
        b"\x03"
        + _GET
        + _CHUNKED
        + _post(b"{}", b"content-length: 2", b"transfer-encoding: chunked"),
    ),
}
_WORDS = (
    *(b"\n\n", b"\r\n", b"\r\n\r\n", b"\r", b"data:", b"event:", b"[DONE]", b"null", b"true"),
    *(b"{}", b"[]", b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u0065", b"-1", b"1e999"),
    *(
        b'"usage":{',
        b'"choices":[',
        b'"index":',
        b"1000000000",
        b"99999999999999999999",
        b'"error":',
    ),
    *(
        b'"embedding":',
        b"content-length: ",
        b"transfer-encoding: chunked\r\n",
        b"0\r\n\r\n",
        b"\x00",
    ),
    *(
        b"HTTP/1.1 200 OK\r\n",
        b"POST ",
        b"connection: close\r\n",
        b"\xff",
        b"\xc3\xa9",
        b" ",
        b"+2",
    ),
)


def mutated(chance: random.Random, seeds: tuple[bytes, ...], rounds: int) -> Iterator[bytes]:
    """Inputs near the seeds."""
    for _ in range(rounds):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 2, 3, 6))):
            at = chance.randrange(len(data) + 1)
            to = min(len(data), at + chance.choice((1, 2, 4, 16, 64)))
            match chance.randrange(6):
                case 0:
                    del data[at:to]
                case 1:
                    data[at:at] = data[at:to] * chance.choice((1, 3))
                case 2:
                    data[at:to] = chance.choice(_WORDS)
                case 3:
                    data[at:at] = chance.choice(_WORDS)
                case 4:
                    other = chance.choice(seeds)
                    begin = chance.randrange(len(other))
                    data[at:to] = other[begin : begin + 40]
                case _:
                    data[at:to] = bytes(chance.randrange(256) for _ in data[at:to])
        yield bytes(data)


def kept(name: str) -> list[bytes]:
    """Inputs that once broke this target."""
    folder = KEPT / name
    return [file.read_bytes() for file in sorted(folder.iterdir())] if folder.is_dir() else []


# -- the command ------------------------------------------------------------------------------


def explore(name: str, seconds: int, corpus: Path) -> int:
    """Run atheris in this process on one target; it never returns normally."""
    import atheris

    corpus.mkdir(parents=True, exist_ok=True)
    for seed in (*SEEDS[name], *kept(name)):
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    words = corpus.parent / f"{name}.dict"
    words.write_text("".join('"' + "".join(f"\\x{b:02x}" for b in w) + '"\n' for w in _WORDS))
    target = TARGETS[name]
    atheris.instrument_all()
    options = [f"-max_total_time={seconds}", f"-dict={words}", "-max_len=4096", "-timeout=10"]
    options += ["-rss_limit_mb=2048", "-print_final_stats=0", f"-artifact_prefix={corpus}-"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()
    return 0


def replay(name: str, corpus: Path) -> int:
    """Try what was found on the sources as they are loaded here; how many inputs there were."""
    files = sorted(corpus.iterdir())
    for file in files:
        try:
            TARGETS[name](file.read_bytes())
        except Exception:
            print(f"{name}: {file} breaks it", flush=True)
            raise
    return len(files)


def main(arguments: list[str]) -> int:
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(prog="./manage.sh fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--phase", choices=["explore", "replay"], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    for name in given.targets:
        if name not in TARGETS:
            parser.error(f"unknown target {name!r}; known: {', '.join(TARGETS)}")
    root = Path(os.environ.get("SAGE_FUZZ_DIR", ".fuzz")).resolve()
    failed: list[str] = []
    for name in given.targets or TARGETS:
        corpus = root / name
        if given.phase == "explore":
            return explore(name, given.seconds, corpus)
        if given.phase == "replay":
            print(f"{name}: {replay(name, corpus)} inputs hold", flush=True)
            continue
        begun = time.monotonic()
        for phase, interpreted in (("explore", True), ("replay", False)):
            env = {**os.environ, "SAGE_COMPILED": "0" if interpreted else "1"}
            again = [sys.executable, str(HERE / "fuzz.py"), "--phase", phase]
            again += ["--seconds", str(given.seconds), name]
            if subprocess.run(again, env=env, check=False).returncode:
                failed.append(f"{name} ({phase})")
        print(f"=== {name}: {time.monotonic() - begun:.0f} s", flush=True)
    if failed:
        print(f"broken: {', '.join(failed)}; inputs in {root}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
