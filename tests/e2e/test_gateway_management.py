"""A gateway process in front of mock engines: fallbacks, cooldown, reload, keys and commands under
load, with nothing in between that is not the real thing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.e2e

KEY = "sk-e2e-management"
SAGE = (sys.executable, "-m", "sage_prefect.cli.main")
QUESTION = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
MANAGEMENT = "/v1/management"


@dataclass
class Engines:
    """``sage bench mock-engine``: an engine per URL."""

    urls: list[str]
    control: str

    def fault(self, **fault: Any) -> None:
        answer = httpx.post(f"{self.control}/faults", json=fault, timeout=30, trust_env=False)
        assert answer.is_success, answer.text

    def heal(self) -> None:
        for number in range(len(self.urls)):
            httpx.delete(f"{self.control}/engines/{number}/faults", timeout=30, trust_env=False)


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    options = ("--count", "3", "--time-scale", "10", "--model", "mock", "--max-model-len", "4096")
    with subprocess.Popen(
        [*SAGE, "bench", "mock-engine", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        yield Engines([engine["url"] for engine in found["engines"]], found["control"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@dataclass
class Gateway:
    """``python -m sage_gateway`` with a file that tests write anew."""

    home: Path
    file: Path
    urls: list[str]
    popen: subprocess.Popen[bytes] | None = None
    url: str = ""
    env: dict[str, str] = field(default_factory=dict)

    def write(self, models: dict[str, tuple[str, int]], **sections: Any) -> None:
        """``models``: id of the engine -> (model name, number of the mock engine)."""
        entries = [
            {
                "model_name": name.partition("#")[0],
                "litellm_params": {
                    "model": "openai/mock",
                    "api_base": self.urls[number],
                    **({"order": int(name.partition("#")[2])} if "#" in name else {}),
                },
                "model_info": {"id": engine, "max_concurrency": 16},
            }
            for engine, (name, number) in models.items()
        ]
        self.file.write_text(json.dumps({"model_list": entries, **sections}))

    @property
    def log(self) -> str:
        return (self.home / "gateway.log").read_text()

    def start(self) -> None:
        with (self.home / "gateway.log").open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "sage_gateway", "--config", str(self.file), "--port", "0"],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.env,
            )
        deadline = time.monotonic() + 60
        while not (found := re.search(r"listening on (http://\S+)", self.log)):
            assert self.popen.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        self.url = found.group(1)

    def stop(self) -> None:
        if self.popen is not None and self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            assert self.popen.wait(60) == 0, self.log

    def client(self, key: str = KEY) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
            trust_env=False,
            limits=httpx.Limits(max_connections=64),
        )

    def sage(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A real command, with the key from the environment."""
        done = subprocess.run(
            [*SAGE, *arguments, "--url", self.url],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done


@pytest.fixture
def gateway(engines: Engines, tmp_path: Path) -> Iterator[Gateway]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_")}
    env |= {
        "SAGE_HOME": str(tmp_path),
        "SAGE_MASTER_KEY": KEY,
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    made = Gateway(tmp_path, tmp_path / "gateway.yaml", engines.urls, env=env)
    engines.heal()
    yield made
    made.stop()
    engines.heal()


async def ask(client: httpx.AsyncClient, model: str = "m", **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"model": model, **QUESTION, **fields})


def is_whole(answer: httpx.Response) -> bool:
    """Whether a client got all of an answer."""
    if answer.status_code != 200:
        return False
    if answer.headers["content-type"].startswith("text/event-stream"):
        return answer.text.rstrip().endswith("data: [DONE]")
    return bool(answer.json()["choices"][0]["message"]["content"])


class Load:
    """Clients that ask all the time, streaming and not, until they are told to stop."""

    def __init__(self, client: httpx.AsyncClient, clients: int = 12) -> None:
        self._client = client
        self._over = asyncio.Event()
        self.answers: list[httpx.Response] = []
        self._tasks = [asyncio.ensure_future(self._ask(n)) for n in range(clients)]

    async def _ask(self, number: int) -> None:
        turn = number
        while not self._over.is_set():
            turn += 1
            self.answers.append(await ask(self._client, stream=turn % 2 == 0))

    async def during(self, count: int) -> None:
        """Return when so many more answers have come."""
        wanted = len(self.answers) + count

        async def have_come() -> bool:
            return len(self.answers) >= wanted

        await until(have_come)

    async def stop(self) -> list[httpx.Response]:
        self._over.set()
        await asyncio.gather(*self._tasks)
        return self.answers


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll until ``condition()`` holds; fail after 60 s."""
    deadline = asyncio.get_running_loop().time() + 60
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not come true"
        await asyncio.sleep(0.01)


async def test_reload_under_load_loses_no_request(gateway: Gateway) -> None:
    gateway.write({"a": ("m", 0), "b": ("m", 1)})
    gateway.start()
    async with gateway.client() as client:
        load = Load(client)
        shapes = [{"a": ("m", 0)}, {"a": ("m", 1), "c": ("m", 2)}, {"b": ("m", 1), "a": ("m", 0)}]
        for turn in range(12):
            await load.during(20)
            policy = ["fifo", "hybrid", "random"][turn % 3]
            gateway.write(
                shapes[turn % 3], router_settings={"routing_strategy": policy, "timeout": 60 + turn}
            )
            if turn % 2:
                assert (await client.post(f"{MANAGEMENT}/reload")).status_code == 200
            else:
                before = gateway.log.count("configuration reloaded")
                assert gateway.popen is not None
                gateway.popen.send_signal(signal.SIGHUP)

                async def told(before: int = before) -> bool:
                    return gateway.log.count("configuration reloaded") > before

                await until(told)
            gateway.file.write_text("model_list: [")
            broken = await client.post(f"{MANAGEMENT}/reload")
            assert broken.status_code == 400
            assert "not YAML" in broken.json()["error"]["message"]
        answers = await load.stop()
        state = (await client.get(f"{MANAGEMENT}/state")).json()
    assert len(answers) >= 240
    assert [answer.text for answer in answers if not is_whole(answer)] == []
    assert (state["queued"], state["running"]) == (0, 0)
    assert {engine["name"] for engine in state["engines"]} == {"a", "b"}
    assert gateway.log.count("configuration not reloaded") == 12


async def test_a_key_is_revoked_under_load(gateway: Gateway) -> None:
    gateway.write({"a": ("m", 0)})
    gateway.start()
    gateway.sage("tenants", "create", "search", "--weight", "2")
    key = gateway.sage("keys", "create", "search", "--name", "doomed").stdout.strip()
    kept = gateway.sage("keys", "create", "search", "--name", "kept").stdout.strip()
    assert key.startswith("sk-sage-")
    listed = json.loads(gateway.sage("keys", "list", "--json").stdout)
    doomed = next(entry["id"] for entry in listed if entry["name"] == "doomed")
    async with gateway.client(key) as client, gateway.client(kept) as other:
        load, untouched = Load(client, 6), Load(other, 6)
        await load.during(50)
        begun_before = len(load.answers)
        async with gateway.client() as manager:
            revoked = await manager.delete(f"{MANAGEMENT}/keys/{doomed}")
        assert revoked.json()["state"] == "revoked"
        # From here on nothing that begins may be served.
        assert (await ask(client)).status_code == 401
        await load.during(30)
        answers, others = await load.stop(), await untouched.stop()
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {200, 401}
    # What was running when the key went was answered whole.
    assert all(is_whole(answer) for answer in answers if answer.status_code == 200)
    first = next(n for n, answer in enumerate(answers) if answer.status_code == 401)
    assert first >= begun_before
    late = [answer.status_code for answer in answers[first:]]
    assert late.count(200) <= 6  # one running request per client at most
    assert all(is_whole(answer) for answer in others)
    gateway.stop()
    gateway.start()  # and it stays revoked
    async with gateway.client(key) as client, gateway.client(kept) as other:
        assert (await ask(client)).status_code == 401
        assert is_whole(await ask(other))


async def test_fallbacks_when_engines_crash_under_load(gateway: Gateway, engines: Engines) -> None:
    gateway.write(
        {"main": ("m", 0), "spare": ("m#2", 1), "small": ("small", 2)},
        router_settings={"fallbacks": [{"m": ["small"]}]},
    )
    gateway.start()
    async with gateway.client() as client:
        assert (await ask(client)).headers["x-sage-engine"] == "main"
        load = Load(client)
        await load.during(30)
        engines.fault(kind="crash", engine=0, seconds=100)  # of the engine: 10 of ours
        await load.during(60)
        assert (await ask(client)).headers["x-sage-engine"] == "spare"
        engines.fault(kind="crash", engine=1, seconds=100)
        await load.during(60)
        answer = await ask(client)
        assert (answer.headers["x-sage-engine"], answer.headers["x-sage-model"]) == (
            "small",
            "small",
        )

        async def are_back() -> bool:
            listed = (await client.get(f"{MANAGEMENT}/engines")).json()["engines"]
            return all(engine["state"] == "ready" for engine in listed)

        await until(are_back)
        assert (await ask(client)).headers["x-sage-engine"] == "main"
        answers = await load.stop()
    used = Counter(answer.headers.get("x-sage-engine") for answer in answers)
    assert min(used["main"], used["spare"], used["small"]) > 5
    for answer in answers:
        if not is_whole(answer):
            # Only a stream that had begun may be lost with its engine, and it says so.
            assert "answer_incomplete" in answer.text, answer.text
    broken = sum(not is_whole(answer) for answer in answers)
    assert broken <= 24  # the clients' streams in the two crashes


async def test_a_prompt_too_long_goes_to_the_model_with_more_room(gateway: Gateway) -> None:
    gateway.write(
        {"short": ("m", 0), "long": ("long", 1)},
        router_settings={"context_window_fallbacks": [{"m": ["long"]}]},
    )
    gateway.start()
    async with gateway.client() as client:
        # Both mock engines have the same room: the answer is the last one's error, and both asked.
        answer = await ask(client, messages=[{"role": "user", "content": "word " * 20_000}])
        assert answer.status_code == 400
        assert "maximum" in answer.json()["error"]["message"]
        story = (await client.get(f"{MANAGEMENT}/explain/{answer.headers['x-request-id']}")).json()
    assert story["model"] == "long"
    assert "falls back" in gateway.log


async def test_an_engine_cools_down(gateway: Gateway, engines: Engines) -> None:
    gateway.write(
        {"bad": ("m", 0), "good": ("m", 1)},
        router_settings={
            "routing_strategy": "round_robin",
            "allowed_fails": 2,
            "cooldown_time": 2,
        },
    )
    gateway.start()
    engines.fault(kind="status", engine=0, status=500, count=None)
    async with gateway.client() as client:

        async def state() -> dict[str, Any]:
            listed = (await client.get(f"{MANAGEMENT}/engines")).json()["engines"]
            return next(engine for engine in listed if engine["name"] == "bad")

        async def cools() -> bool:
            assert is_whole(await ask(client))
            return (await state())["cools_down_s"] is not None

        await until(cools)
        assert (await state())["state"] == "suspect"
        for _ in range(10):
            assert (await ask(client)).headers["x-sage-engine"] == "good"
        engines.heal()

        async def is_back() -> bool:
            return (await ask(client)).headers["x-sage-engine"] == "bad"

        await until(is_back)
    assert "engine cools down" in gateway.log


async def test_commands(gateway: Gateway) -> None:
    gateway.write({"a": ("m", 0)}, router_settings={"retry_after": 1})
    gateway.start()
    assert gateway.log.count("router_settings.retry_after is not honoured") == 1
    assert gateway.sage("policy", "get").stdout.startswith("hybrid (known: ")
    assert gateway.sage("policy", "set", "fair").stdout == "fair\n"
    wrong = gateway.sage("policy", "set", "fairy", check=False)
    assert wrong.returncode == 1
    assert "Did you mean 'fair'?" in wrong.stderr
    added = gateway.sage(
        *("engines", "register", "e/embed", gateway.urls[2], "--model", "mock-embedding"),
        *("--mode", "embedding", "--padded", "--profile", "s0=0.002,alpha=3e-6"),
    )
    assert "registered" in added.stdout
    listed = {e["name"]: e for e in json.loads(gateway.sage("engines", "list", "--json").stdout)}
    assert listed["e/embed"]["padded"] is True
    assert listed["e/embed"]["profile"]["alpha"] == 3e-6
    drained = gateway.sage("engines", "drain", "e/embed", "--wait", "5").stdout
    assert "draining, 0 in flight" in drained
    assert "draining" in gateway.sage("engines", "list").stdout
    assert "e/embed: ready" in gateway.sage("engines", "undrain", "e/embed").stdout
    assert "removed" in gateway.sage("engines", "remove", "e/embed").stdout
    missing = gateway.sage("engines", "drain", "e/embed", check=False)
    assert missing.returncode == 1
    assert "There is no engine 'e/embed'. Known engines: a." in missing.stderr
    gateway.sage(
        *("tenants", "create", "t", "--band", "batch", "--model", "m*", "--rpm", "2"),
    )
    tenants = gateway.sage("tenants", "list").stdout
    assert "2 req/min" in tenants
    key = gateway.sage("keys", "create", "t", "--name", "k", "--expires", "1h").stdout.strip()
    assert "active" in gateway.sage("keys", "list").stdout
    async with gateway.client(key) as client:
        answer = await ask(client, **{"stream": False})
        assert answer.headers["x-ratelimit-remaining-requests"] == "1"
        assert (await ask(client)).status_code == 200
        refused = await ask(client)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert (await ask(client, model="other")).status_code == 403
    story = json.loads(gateway.sage("gateway", "explain", answer.headers["x-request-id"]).stdout)
    assert (story["tenant"], story["state"], story["band"]) == ("t", "done", "batch")
    state = gateway.sage("gateway", "state").stdout
    assert "policy fair" in state
    assert "tenant 't': 0 run" in state
    assert "1 keys revoked" in gateway.sage("tenants", "remove", "t").stdout
    gateway.write({"b": ("m", 1)})
    reloaded = gateway.sage("gateway", "reload").stdout
    assert "engines added: b" in reloaded
    assert "engines removed: a" in reloaded
    gateway.file.write_text("nonsense: [")
    broken = gateway.sage("gateway", "reload", check=False)
    assert broken.returncode == 1
    assert "not YAML" in broken.stderr
    gateway.env["SAGE_MASTER_KEY"] = "sk-wrong"
    stranger = gateway.sage("engines", "list", check=False)
    assert stranger.returncode == 1
    assert "another master key" in stranger.stderr
    assert KEY not in gateway.log
    assert key not in gateway.log
