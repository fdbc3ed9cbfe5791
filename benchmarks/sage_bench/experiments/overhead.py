"""What a request costs on its way through a gateway, beside other gateways in the same run.

A compiled mock engine stands behind every gateway and a compiled client before it. CPU time is that
of the gateway's processes alone. Latency is what a gateway adds: the same load is sent straight to
the mock engine next to each measurement, and subtracted.
"""

from __future__ import annotations

import hashlib
import random
import resource
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import psutil
from pydantic import Field

from sage_bench.claims import Claim
from sage_bench.cputime import CpuMeter
from sage_bench.experiment import Experiment, Options, RunConfig, Setup
from sage_bench.manifest import Workload
from sage_bench.overhead import gateways
from sage_bench.overhead.gateways import CHAT_MODEL, EMBEDDING_MODEL, SAGE, Contestant
from sage_bench.overhead.programs import Client, Upstream, build
from sage_bench.result_folder import ResultFolder
from sage_bench.server import Server
from sage_bench.session import RunResult, execute
from sage_bench.system import Case, Metric, Reading, Role, System

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
_EVENT_GAP_US = 10_000  # so slow that every event is a read and a write of its own
_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps")


class OverheadOptions(Options):
    """``--set`` options of ``overhead``."""

    vllm_router: str = Field(
        "", description="Interpreters (comma) whose environments have vllm-router; none: left out."
    )
    litellm: str = Field("", description="Interpreter whose environment has litellm[proxy].")
    nginx: str = Field("", description="The program; none: found, or left out.")
    engines: int = Field(8, ge=1, le=64, description="Mock engines behind each gateway.")
    seconds: float = Field(1.5, gt=0, description="Length of one measurement.")
    connections: str = Field("1,16,64", description="Client connections of the chat cases.")
    streams: str = Field("16,64,128", description="Streams at once of the stream cases.")
    rate: float = Field(500.0, gt=0, description="Requests/s of the first-byte case.")
    inputs: int = Field(64, ge=1, description="Inputs per embedding call.")
    dimensions: int = Field(384, ge=1, description="Of their vectors.")
    idle: int = Field(2000, ge=0, description="Idle connections of the memory case.")
    active: int = Field(500, ge=0, description="Running streams of the memory case.")


class Overhead(Experiment):
    """CPU, latency, memory and start of gateways."""

    name = "overhead"
    title = "What a gateway costs per request, chunk and input, beside other gateways"
    expectation = (
        "nginx, which decides nothing, is cheapest. Ours needs less CPU than the Rust router at "
        "16 and 64 connections, where reads bring several requests at once, and less of an "
        "advantage at 1. With one process its requests/s end at one core."
    )
    metrics = (
        Metric("cpu_us", "us CPU per request, chunk or input", "lower"),
        Metric("per_s", "requests, chunks or inputs per s", "higher"),
        Metric(
            "added_p50_ms", "ms added at the median (first-byte case: to the first byte)", "lower"
        ),
        Metric("added_p99_ms", "ms added at the 99th percentile", "lower"),
        Metric("rss_mb", "MB resident", "lower"),
        Metric("ready_s", "s from start to the first answer", "lower"),
    )
    options = OverheadOptions

    def prepare(
        self, config: RunConfig, options: Any, folder: ResultFolder, stack: ExitStack
    ) -> Setup:
        """Build the programs, start mock engines and gateways.

        Raises:
            BenchmarkError: no C++ compiler, or a named peer is not there or does not start.
        """
        _raise_file_limit()
        if config.quick:
            options = _quick(options)
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sage-bench-")))
        key = f"sk-bench-{secrets.token_urlsafe(24)}"
        upstream = stack.enter_context(
            Upstream(build("upstream", home), options.engines, options.dimensions)
        )
        window = max(64, -(-options.active // options.engines) + 16)
        contestants, absent = _contestants(options, upstream.ports, key, home, folder, window)
        running = {each.name: stack.enter_context(each.start("shared")) for each in contestants}
        bench = _Bench(
            Client(build("client", home), key),
            upstream.ports[0],
            options,
        )
        bodies = _Bodies(home, config.seed, options.inputs)
        cases = bench.cases(contestants, running, bodies)
        return Setup(
            cases=cases,
            claims=_claims(contestants, options),
            workload=Workload(
                dataset="synthetic prompts of 5 to 200 words; answers are canned",
                dataset_sha256=bodies.sha256,
                items=len(bodies.chat),
                sizes={"inputs_per_call": options.inputs, "dimensions": options.dimensions},
                arrival="closed loop; first byte: open loop, Poisson",
                mix="one kind of request per case",
                tenants="one",
            ),
            backend_kind="mock",
            facts={"absent_peers": absent},
        )


class _Bodies:
    """Request bodies of various lengths, in files for the client; each list is of its arguments."""

    def __init__(self, home: Path, seed: int, inputs: int) -> None:
        draw = random.Random(seed)
        digest = hashlib.sha256()

        def text(words: int) -> str:
            return " ".join(draw.choices(_WORDS, k=words))

        def write(name: str, path: str, content: dict[str, Any]) -> str:
            data = orjson.dumps(content)
            digest.update(data)
            (home / name).write_bytes(data)
            return f"{path}={home / name}"

        def chat(name: str, content: str, **more: Any) -> str:
            messages = [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": content},
            ]
            fields = {"model": CHAT_MODEL, "messages": messages, "max_tokens": 64, **more}
            return write(name, CHAT, fields)

        lengths = [draw.randint(5, 200) for _ in range(32)]
        self.chat = [chat(f"chat-{i}", text(n)) for i, n in enumerate(lengths)]
        self.streams = [
            chat(f"stream-{i}", f"{text(n)} events:100 gap-us:{_EVENT_GAP_US}", stream=True)
            for i, n in enumerate(lengths)
        ]
        self.short_streams = [
            chat(f"short-{i}", f"{text(n)} events:4 gap-us:1000", stream=True)
            for i, n in enumerate(lengths)
        ]
        self.long_stream = chat("long", f"{text(30)} events:100000 gap-us:100000", stream=True)
        self.embeddings = [
            write(
                f"embeddings-{i}",
                EMBEDDINGS,
                {"model": EMBEDDING_MODEL, "input": [f"{i} {n} {text(12)}" for n in range(inputs)]},
            )
            for i in range(8)
        ]
        self.sha256 = digest.hexdigest()


class _Bench:
    """Makes the systems of each case."""

    def __init__(self, client: Client, direct_port: int, options: OverheadOptions) -> None:
        self._client = client
        self._direct = direct_port
        self._options = options
        self._seconds = options.seconds

    def cases(
        self, contestants: Sequence[Contestant], running: dict[str, Server], bodies: _Bodies
    ) -> list[Case]:
        """All cases."""
        options = self._options
        fast = [each for each in contestants if not each.slow]

        def case(
            name: str,
            who: Sequence[Contestant],
            measure: Callable[[Server], Callable[[int], Reading]],
        ) -> Case:
            return Case(name, tuple(_system(each, measure(running[each.name])) for each in who))

        made = [
            case(f"chat, {count} connections", contestants, self._closed(count, bodies.chat))
            for count in _numbers(options.connections)
        ]
        made += [
            case(f"{count} streams", fast, self._closed(count, bodies.streams, unit="events"))
            for count in _numbers(options.streams)
        ]
        made.append(case(_first_byte(options), fast, self._first_byte(bodies.short_streams)))
        made.append(
            case(
                "embeddings",
                [each for each in fast if each.embeds],
                self._closed(4, bodies.embeddings, scale=options.inputs),
            )
        )
        idle, active = options.idle, options.active
        made.append(
            Case(
                _memory(options),
                tuple(_system(each, self._fresh(each, idle, active, bodies)) for each in fast),
            )
        )
        return made

    def _closed(
        self, count: int, bodies: Sequence[str], unit: str = "answers", scale: int = 1
    ) -> Callable[[Server], Callable[[int], Reading]]:
        def of(server: Server) -> Callable[[int], Reading]:
            def measure(number: int) -> Reading:
                direct = self._client.run("closed", self._direct, count, self._seconds / 4, bodies)
                with CpuMeter([server.pid], poll_s=None) as meter:
                    found = self._client.run("closed", server.port, count, self._seconds, bodies)
                units = found[unit] * scale
                return Reading(
                    values={
                        "cpu_us": meter.cpu_s / units * 1e6,
                        "per_s": units / found["wall_s"],
                        **_added(found, direct, "first_" if unit == "events" else ""),
                    },
                    wall_s=found["wall_s"],
                    cpu_s=meter.cpu_s,
                    detail={"client": dict(found), "direct": dict(direct)},
                )

            return measure

        return of

    def _first_byte(self, bodies: Sequence[str]) -> Callable[[Server], Callable[[int], Reading]]:
        rate = self._options.rate

        def of(server: Server) -> Callable[[int], Reading]:
            def measure(number: int) -> Reading:
                direct = self._client.run("rate", self._direct, rate, self._seconds, bodies)
                with CpuMeter([server.pid], poll_s=None) as meter:
                    found = self._client.run("rate", server.port, rate, self._seconds * 2, bodies)
                return Reading(
                    values=_added(found, direct, "first_"),
                    wall_s=found["wall_s"],
                    cpu_s=meter.cpu_s,
                    detail={"client": dict(found), "direct": dict(direct)},
                )

            return measure

        return of

    def _fresh(
        self, each: Contestant, idle: int, active: int, bodies: _Bodies
    ) -> Callable[[int], Reading]:
        def measure(number: int) -> Reading:
            begun = time.perf_counter()
            with each.start(f"fresh-{number}") as server:
                ready_s = time.perf_counter() - begun
                held = [bodies.chat[0], bodies.long_stream]
                with self._client.hold(server.port, idle, active, held):
                    tree = [psutil.Process(server.pid)]
                    tree += tree[0].children(recursive=True)
                    resident = sum(process.memory_info().rss for process in tree)
            return Reading(
                values={"rss_mb": resident / 1e6, "ready_s": ready_s},
                wall_s=time.perf_counter() - begun,
                detail={"idle": idle, "active": active},
            )

        return measure


def _quick(options: OverheadOptions) -> OverheadOptions:
    """One case of each kind, short: the labels say what was really done."""
    return options.model_copy(
        update={
            "seconds": min(options.seconds, 0.4),
            "connections": options.connections.split(",")[0],
            "streams": options.streams.split(",")[0],
            "idle": min(options.idle, 50),
            "active": min(options.active, 10),
        }
    )


def _system(each: Contestant, measure: Callable[[int], Reading]) -> System:
    # Ours is what others are divided by, so that it is also what is measured twice (A/A), and so
    # that any other gateway may be absent.
    role: Role = "peer" if each.name == SAGE else "subject"
    return System(each.name, measure, role, config=each.config, version=each.version)


def _added(found: Any, direct: Any, prefix: str) -> dict[str, float]:
    return {
        f"added_{q}_ms": found[f"{prefix}{q}_ms"] - direct[f"{prefix}{q}_ms"]
        for q in ("p50", "p99")
    }


def _contestants(
    options: OverheadOptions,
    ports: Sequence[int],
    key: str,
    home: Path,
    folder: ResultFolder,
    window: int,
) -> tuple[list[Contestant], dict[str, str]]:
    """Who takes part, and how to install who does not."""
    logs = folder.logs()
    found, absent = [gateways.sage(ports, key, home, logs, window)], {}
    for python in filter(None, options.vllm_router.split(",")):
        found.append(gateways.vllm_router(python, ports, logs))
    if not options.vllm_router:
        absent["vllm-router"] = _how("vllm_router", gateways.ROUTER_REQUIREMENT)
    program = options.nginx or gateways.find_nginx()
    if program:
        found.append(gateways.nginx(program, ports, home, logs))
    else:
        absent["nginx"] = "apt install nginx-light"
    if options.litellm:
        found.append(gateways.litellm(options.litellm, ports, key, home, logs))
    else:
        absent["litellm"] = _how("litellm", "litellm[proxy]")
    return found, absent


def _how(option: str, requirement: str) -> str:
    return (
        f"python -m venv PEER && PEER/bin/pip install '{requirement}', "
        f"then --set {option}=PEER/bin/python"
    )


def _claims(contestants: Sequence[Contestant], options: OverheadOptions) -> list[Claim]:
    """The promises of issue 4, against each router that takes part: its figure divided by ours."""
    claims = [
        Claim(
            "embedding cpu", "at most 10 us CPU per embedding input", "cpu_us", SAGE, "<=", 10.0,
            case="embeddings",
        ),
        Claim(
            "first byte", "at most 0.3 ms added to the first byte at the median", "added_p50_ms",
            SAGE, "<=", 0.3, case=_first_byte(options),
        ),
        Claim(
            "memory", "at most 150 MB with idle connections and streams", "rss_mb", SAGE, "<=",
            150.0, case=_memory(options),
        ),
        Claim("start", "ready within 1 s", "ready_s", SAGE, "<=", 1.0, case=_memory(options)),
    ]  # fmt: skip
    for router in (each for each in contestants if each.name.startswith("vllm-router")):
        for count in _numbers(options.connections):
            case, share = f"chat, {count} connections", 0.8 if count == 1 else 0.6
            claims.append(
                Claim(
                    f"cpu at {count} beside {router.name}",
                    f"at most {share} of {router.name}'s CPU per request",
                    "cpu_us", router.name, ">=", 1 / share, peer=SAGE, case=case,
                )
            )  # fmt: skip
            if count > 1:
                claims.append(
                    Claim(
                        f"requests/s at {count} beside {router.name}",
                        f"at least 1.5 times {router.name}'s requests/s",
                        "per_s", router.name, "<=", 1 / 1.5, peer=SAGE, case=case,
                    )
                )  # fmt: skip
        for count in _numbers(options.streams):
            if count < 64:
                continue  # reported, not promised
            claims.append(
                Claim(
                    f"chunk cpu at {count} beside {router.name}",
                    f"at most {router.name}'s CPU per streamed chunk",
                    "cpu_us", router.name, ">=", 1.0, peer=SAGE, case=f"{count} streams",
                )
            )  # fmt: skip
    return claims


def _first_byte(options: OverheadOptions) -> str:
    return f"first byte at {options.rate:g}/s"


def _memory(options: OverheadOptions) -> str:
    return f"fresh, {options.idle} idle and {options.active} streams"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


def _raise_file_limit() -> None:
    """Thousands of connections, each twice in a gateway: children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(config: RunConfig) -> RunResult:
    """Run the experiment (what a Prefect flow calls)."""
    return execute(Overhead(), config)
