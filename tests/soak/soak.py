# ruff: noqa: ASYNC220, ASYNC240 - its own start and end may block
"""A gateway under load and random faults for long: nothing may grow, and the books must be right.

``./manage.sh soak [--minutes N] [--rate N]`` starts a gateway and five faulty engines as processes
on loopback, sends an open-loop mix (chat, streams, embeddings; clients that leave, keys that are
wrong, tenants at their limits) and meanwhile kills engines, drains them, reloads the configuration
and switches the policy. Every few minutes the load pauses: then everything in flight must be 0.

At the end it fails unless

* memory, descriptors and threads at the last pause are those of the pause after the first third;
* no counter of anything in flight is left: queued, running, per engine, per limit;
* the gateway counted every request under the status that its client saw (of a client that left,
  the gateway may say 499 or what it would have sent);
* every stream was whole or ended with an error event.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

KEY = "sk-soak-master"
TENANTS = {"free": "sk-soak-free", "limited": "sk-soak-limited"}
CHAT_ENGINES, EMBEDDING_ENGINES = 3, 2
POLICIES = ("hybrid", "least_outstanding", "fifo", "priority")
GROWTH_BYTES, GROWTH_SHARE = 12 << 20, 0.08

# -- an engine that fails now and then ----------------------------------------------------------

FAULTS = {
    "none": 920,
    "status": 30,
    "full": 10,
    "reset_before": 10,
    "reset_within": 15,
    "garbage": 5,
    "short": 5,
    "stall": 2,
    "ends_early": 3,
}


async def engine(port: int, seed: int) -> None:
    """Serve until killed. Port 0: prints the one it got."""
    chance = random.Random(seed)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if not await answer(head, body, writer):
                    break
        writer.transport.abort()

    async def answer(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if head.startswith(b"GET "):
            whole(writer, 200, b'{"data":[]}')
            return True
        asked = json.loads(body)
        fault = chance.choices(list(FAULTS), list(FAULTS.values()))[0]
        if fault == "status":
            whole(writer, chance.choice((500, 503, 400)), b'{"error":{"message":"a soak fault"}}')
            return True
        if fault == "full":
            whole(writer, 429, b'{"error":{"message":"full"}}', b"retry-after: 1\r\n")
            return True
        if fault == "reset_before":
            return False
        if fault == "garbage":
            writer.write(bytes(chance.randrange(256) for _ in range(200)))
            return False
        if fault == "stall":
            await asyncio.sleep(60)
            return False
        if asked.get("stream"):
            return await stream(asked, writer, fault)
        await asyncio.sleep(chance.uniform(0.005, 0.05))
        content = embedded(asked) if b"embeddings" in head.split(b"\r\n", 1)[0] else said()
        if fault in ("short", "reset_within", "ends_early"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(content) + 5))
            writer.write(content[: len(content) // 2])
            await writer.drain()
            return False
        whole(writer, 200, content)
        return True

    def whole(writer: asyncio.StreamWriter, status: int, body: bytes, more: bytes = b"") -> None:
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
            % (status, more, len(body), body)
        )

    def said() -> bytes:
        message = {"role": "assistant", "content": "word " * chance.randrange(1, 200)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return json.dumps({"choices": [choice], "usage": counts(chance.randrange(200))}).encode()

    def embedded(asked: dict[str, Any]) -> bytes:
        inputs = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        data = [{"index": i, "embedding": [0.25] * 64} for i in range(len(inputs))]
        usage = {"prompt_tokens": 4 * len(inputs), "total_tokens": 4 * len(inputs)}
        return json.dumps({"object": "list", "data": data, "usage": usage}).encode()

    def counts(tokens: int) -> dict[str, int]:
        return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}

    async def stream(asked: dict[str, Any], writer: asyncio.StreamWriter, fault: str) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

        def chunk(data: bytes) -> None:
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))

        def event(content: Any) -> None:
            chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

        words = chance.randrange(2, 12)
        for at in range(words):
            delta = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
            event({"choices": [delta]})
            await writer.drain()
            await asyncio.sleep(0.005)
            if at == words // 2 and fault in ("reset_within", "short"):
                return False
            if at == words // 2 and fault == "ends_early":
                chunk(b"")
                return True
        event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if (asked.get("stream_options") or {}).get("include_usage"):
            event({"choices": [], "usage": counts(words)})
        chunk(b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    server = await asyncio.start_server(converse, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Engines:
    """Processes of :func:`engine`; one that is killed comes back on its port."""

    def __init__(self, count: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self.ports: list[int] = []
        for number in range(count):
            process, port = self._start(0, number)
            self._processes.append(process)
            self.ports.append(port)
        self.kills = 0

    @staticmethod
    def _start(port: int, seed: int) -> tuple[subprocess.Popen[bytes], int]:
        command = [sys.executable, __file__, "--engine", str(port), "--seed", str(seed)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            raise RuntimeError(f"an engine did not start on port {port}")
        return process, int(said)

    async def kill_one(self, chance: random.Random) -> None:
        """Kill -9, and start it again after a while."""
        number = chance.randrange(len(self._processes))
        self._end(number)
        self.kills += 1
        await asyncio.sleep(chance.uniform(0.2, 3.0))
        start = asyncio.to_thread(self._start, self.ports[number], chance.randrange(1 << 30))
        self._processes[number], _ = await start

    def _end(self, number: int) -> None:
        process = self._processes[number]
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def close(self) -> None:
        for number in range(len(self._processes)):
            self._end(number)


# -- clients --------------------------------------------------------------------------------------


@dataclass
class Truth:
    """What clients saw."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    classes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The same as the gateway counts them: a stream that broke is a 5xx."""
    left: Counter[str] = field(default_factory=Counter)
    """Clients that went away, by route."""
    broken: int = 0
    """Streams that ended with an error event."""
    silent: list[str] = field(default_factory=list)
    """Streams that were neither whole nor said why."""
    lost: list[str] = field(default_factory=list)
    """Requests that got no answer at all."""
    sent: int = 0


class Client:
    """A lean HTTP client: the load must not cost more than what it loads."""

    def __init__(self, port: int, truth: Truth, chance: random.Random) -> None:
        self._port = port
        self._truth = truth
        self._chance = chance
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one(self) -> None:
        """One request of the mix."""
        chance, truth = self._chance, self._truth
        kind = chance.choices(("chat", "stream", "embeddings"), (50, 30, 20))[0]
        key = chance.choices((*TENANTS.values(), KEY, "sk-wrong"), (60, 15, 24, 1))[0]
        leaves = chance.random() < 0.04
        body: dict[str, Any] = {"model": "chat"}
        if kind == "embeddings":
            words = chance.choices(("alpha", "beta", "gamma", "delta"), k=chance.randrange(1, 6))
            body = {"model": "embed", "input": words}
        else:
            body["messages"] = [{"role": "user", "content": "x" * chance.randrange(10, 2000)}]
            body["stream"] = kind == "stream"
        band = chance.choice(("interactive", "standard", "batch"))
        route = "embeddings" if kind == "embeddings" else "chat"
        truth.sent += 1
        connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = connection
        path = "/v1/embeddings" if kind == "embeddings" else "/v1/chat/completions"
        data = json.dumps(body).encode()
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: soak\r\nauthorization: Bearer {key}\r\n"
            f"x-sage-band: {band}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n".encode()
            + data
        )
        if leaves:
            await asyncio.sleep(chance.uniform(0, 0.05))
            truth.left[route] += 1
            writer.transport.abort()
            return
        try:
            status, answer, keep = await asyncio.wait_for(self._answer(reader), 60)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            truth.lost.append(f"{route} {band}: {error!r}")
            writer.transport.abort()
            return
        truth.statuses[route, status] += 1
        family = f"{status // 100}xx"
        if kind == "stream" and status == 200 and b"data: [DONE]" not in answer:
            if b'"error"' in answer:
                truth.broken += 1
                family = "5xx"
            else:
                truth.silent.append(repr(answer[-200:]))
        if status != 401:  # refused before it is a request of any model
            truth.classes[route, family] += 1
        if keep:
            self._idle.append(connection)
        else:
            writer.close()

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status, keep = int(head[9:12]), b"connection: close" not in head
        length = re.search(rb"content-length: (\d+)", head)
        if length:
            return status, await reader.readexactly(int(length[1])), keep
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return status, body, keep

    def close(self) -> None:
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()


# -- the run --------------------------------------------------------------------------------------


@dataclass
class Sample:
    """The gateway at a pause."""

    at_s: float
    rss: int
    descriptors: int
    threads: int


class Soak:
    def __init__(self, minutes: float, rate: float, seed: int, folder: Path) -> None:
        self.length_s = minutes * 60
        self.rate = rate
        self.chance = random.Random(seed)
        self.folder = folder
        self.truth = Truth()
        self.samples: list[Sample] = []
        self.acts: Counter[str] = Counter()
        self.engines = Engines(CHAT_ENGINES + EMBEDDING_ENGINES)

    def configuration(self) -> Path:
        listed = []
        for number, port in enumerate(self.engines.ports):
            embeds = number >= CHAT_ENGINES
            params = {
                "model": "openai/embed" if embeds else "openai/chat",
                "api_base": f"http://127.0.0.1:{port}/v1",
                "max_parallel_requests": 32,
            }
            entry = {"model_name": "embed" if embeds else "chat", "litellm_params": params}
            if embeds:
                entry["model_info"] = {"mode": "embedding"}
            listed.append(entry)
        limit = {"rpm": 600, "tpm": 200_000, "max_parallel_requests": 8}
        tenants = [
            {"name": "free", "key": TENANTS["free"]},
            {"name": "limited", "key": TENANTS["limited"], **limit},
        ]
        sage = {"tenants": tenants, "timeouts": {"first_byte_s": 5, "idle_s": 3}}
        file = self.folder / "gateway.yaml"
        file.write_text(json.dumps({"model_list": listed, "sage_settings": sage}))
        return file

    async def run(self) -> int:
        log = self.folder / "gateway.log"
        env = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_")}
        env |= {"SAGE_HOME": str(self.folder / "home"), "SAGE_MASTER_KEY": KEY}
        command = [sys.executable, "-m", "sage_gateway", "--port", "0", "--log-level", "ERROR"]
        command += ["--config", str(self.configuration())]
        with log.open("wb") as file:
            gateway = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
        try:
            port = await self._port(gateway, log)
            async with self._management(port) as manage:
                await self._load(gateway, port, manage)
                code = await self._judge(manage, log)
            gateway.send_signal(signal.SIGTERM)
            if gateway.wait(60) != 0:
                print(f"FAILED: the gateway ended with exit {gateway.returncode}")
                return 1
            return code
        finally:
            if gateway.poll() is None:
                gateway.kill()
                gateway.wait()
            self.engines.close()

    @staticmethod
    async def _port(gateway: subprocess.Popen[bytes], log: Path) -> int:
        for _ in range(600):
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text()):
                return int(found[1])
            if gateway.poll() is not None:
                break
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the gateway did not start: {log.read_text()[-2000:]}")

    @staticmethod
    @contextlib.asynccontextmanager
    async def _management(port: int) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"authorization": f"Bearer {KEY}"}
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
            yield client

    async def _load(
        self, gateway: subprocess.Popen[bytes], port: int, manage: httpx.AsyncClient
    ) -> None:
        loop, process = asyncio.get_running_loop(), psutil.Process(gateway.pid)
        client = Client(port, self.truth, self.chance)
        begun, next_pause = loop.time(), loop.time() + min(60.0, self.length_s / 6)
        running: set[asyncio.Task[None]] = set()
        faults = asyncio.ensure_future(self._faults(gateway, manage))
        due = begun
        while loop.time() - begun < self.length_s:
            if loop.time() >= next_pause:
                await asyncio.gather(*running)
                client.close()
                await self._pause(process, loop.time() - begun, manage)
                due = loop.time()
                next_pause = due + min(120.0, self.length_s / 6)
            due += self.chance.expovariate(self.rate)
            await asyncio.sleep(max(0.0, due - loop.time()))
            task = asyncio.ensure_future(client.one())
            running.add(task)
            task.add_done_callback(running.discard)
            if faults.done():
                faults.result()  # its failure is ours
        faults.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await faults
        await asyncio.gather(*running)
        client.close()
        await self._pause(process, loop.time() - begun, manage)

    async def _pause(self, process: psutil.Process, at_s: float, manage: httpx.AsyncClient) -> None:
        """Wait until nothing is in flight, and take the measures."""
        state: dict[str, Any] = {}
        for _ in range(300):
            state = (await manage.get("/v1/management/state")).json()
            if not self._in_flight(state):
                break
            await asyncio.sleep(0.1)
        else:
            raise RuntimeError(f"still in flight 30 s after the last answer: {state}")
        sample = Sample(at_s, process.memory_info().rss, process.num_fds(), process.num_threads())
        self.samples.append(sample)
        print(
            f"{at_s:6.0f} s: {self.truth.sent:,} requests, {self.engines.kills} kills, "
            f"{sample.rss / 1e6:.1f} MB, {sample.descriptors} descriptors, "
            f"{sample.threads} threads; lost {len(self.truth.lost)}, "
            f"silently cut {len(self.truth.silent)}",
            flush=True,
        )

    @staticmethod
    def _in_flight(state: dict[str, Any]) -> list[str]:
        found = [f"{name}: {state[name]}" for name in ("queued", "queued_bytes", "running")]
        found += [f"{e['name']}: {e['in_flight']}" for e in state["engines"]]
        found += [f"{limit['who']}: {limit['running']}" for limit in state["limits"]]
        return [item for item in found if not item.endswith(": 0")]

    async def _faults(self, gateway: subprocess.Popen[bytes], manage: httpx.AsyncClient) -> None:
        """Something happens every second or so."""
        chance = self.chance

        async def kill() -> None:
            await self.engines.kill_one(chance)

        async def reload() -> None:
            gateway.send_signal(signal.SIGHUP)

        async def switch() -> None:
            answer = await manage.put(
                "/v1/management/policy", json={"policy": chance.choice(POLICIES)}
            )
            answer.raise_for_status()

        async def drain() -> None:
            engines = (await manage.get("/v1/management/engines")).json()["engines"]
            name = chance.choice(engines)["name"]
            (await manage.post(f"/v1/management/engines/{name}/drain")).raise_for_status()
            await asyncio.sleep(1)
            (await manage.post(f"/v1/management/engines/{name}/undrain")).raise_for_status()

        async def scrape() -> None:
            (await manage.get("/metrics")).raise_for_status()

        acts: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            kill, reload, switch, drain, scrape,
        )  # fmt: skip
        while True:
            await asyncio.sleep(chance.uniform(0.5, 2.0))
            act = chance.choices(acts, (4, 1, 1, 2, 4))[0]
            self.acts[act.__name__] += 1
            await act()

    async def _judge(self, manage: httpx.AsyncClient, log: Path) -> int:
        wrong: list[str] = []
        truth = self.truth
        counted: Counter[tuple[str, str]] = Counter()
        text = (await manage.get("/metrics")).text
        for labels, value in re.findall(r"^sage_gateway_requests_total\{(.*)\} (\S+)$", text, re.M):
            said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            counted[said["route"], said["status"]] += int(float(value))
        for route in ("chat", "embeddings"):
            beyond = 0
            for kind in ("2xx", "4xx", "5xx", "cancelled"):
                more = counted[route, kind] - truth.classes[route, kind]
                # Those that left may be counted under anything, but take from no other.
                if more < 0:
                    wrong.append(f"{route} {kind}: {-more} answers were not counted")
                beyond += more
            if not 0 <= beyond <= truth.left[route]:
                wrong.append(
                    f"{route}: {beyond} counted beyond the answers, {truth.left[route]} left"
                )
        if truth.lost:
            wrong.append(f"{len(truth.lost)} requests got no answer, such as {truth.lost[0]}")
        if truth.silent:
            wrong.append(f"{len(truth.silent)} streams were cut silently: {truth.silent[0]}")
        first, last = self.samples[len(self.samples) // 3], self.samples[-1]
        grown = last.rss - first.rss
        if grown > max(GROWTH_BYTES, GROWTH_SHARE * first.rss):
            wrong.append(f"memory grew by {grown / 1e6:.1f} MB since {first.at_s:.0f} s")
        # Each idle connection to an engine is a descriptor; how many there are is chance.
        if last.descriptors > first.descriptors + 64:
            wrong.append(f"descriptors: {first.descriptors}, then {last.descriptors}")
        if last.threads > first.threads + 2:
            wrong.append(f"threads: {first.threads}, then {last.threads}")
        by_status = {f"{r} {s}": n for (r, s), n in sorted(truth.statuses.items())}
        print(f"answers: {by_status}; left: {dict(truth.left)}; broken streams: {truth.broken}")
        print(f"acts: {dict(self.acts)}; gateway's log: {log.stat().st_size} bytes")
        if errors := re.findall(r"Traceback|internal error|This is a bug", log.read_text()):
            wrong.append(f"the log holds {len(errors)} failures of the gateway itself")
        for line in wrong:
            print(f"FAILED: {line}")
        print("soak: " + ("FAILED" if wrong else "passed"))
        return 1 if wrong else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="./manage.sh soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=200, help="requests per second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.engine is not None:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(engine(given.engine, given.seed))
        return 0
    if given.minutes <= 0 or given.rate <= 0:
        parser.error("--minutes and --rate must be above 0")
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="sage-soak-"))
    print(f"soak: {given.minutes:g} min at {given.rate:g}/s, seed {given.seed}; files in {folder}")
    code = asyncio.run(Soak(given.minutes, given.rate, given.seed, folder).run())
    print(f"{time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
