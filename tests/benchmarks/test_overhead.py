"""The compiled mock engine and client against each other, and what the experiment makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from sage_bench.experiments.overhead import Overhead, OverheadOptions, _claims, _quick
from sage_bench.overhead import gateways
from sage_bench.overhead.gateways import SAGE, Contestant
from sage_bench.overhead.programs import Client, Upstream, build
from sage_bench.server import free_port
from sage_bench.summary import summarise
from sage_bench.system import Measurement, Metric
from sage_prefect.common.errors import BenchmarkError

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None, reason="needs a C++ compiler (apt install g++)"
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    for name in ("upstream", "client"):
        build(name, folder)
    return folder


@pytest.fixture
def upstream(programs: Path) -> Iterator[Upstream]:
    with Upstream(programs / "upstream", 2, 4) as started:
        yield started


def body(folder: Path, path: str, content: dict[str, object]) -> str:
    file = folder / path.replace("/", "-")
    file.write_bytes(orjson.dumps(content))
    return f"{path}={file}"


CHAT = {"model": "m", "messages": [{"role": "user", "content": "events:5 gap-us:500"}]}


@needs_compiler
def test_every_event_of_every_stream_is_counted(
    programs: Path, upstream: Upstream, tmp_path: Path
) -> None:
    client = Client(programs / "client", "key")
    streaming = body(tmp_path, "/v1/chat/completions", {**CHAT, "stream": True})
    found = client.run("closed", upstream.ports[1], 3, 0.05, [streaming])
    assert found["events"] == found["answers"] * 6 > 0  # five and [DONE]
    assert found["first_p50_ms"] < found["p50_ms"] >= 2.0  # four gaps of half a millisecond


@needs_compiler
def test_usage_comes_only_to_who_asks(upstream: Upstream) -> None:
    url = f"http://127.0.0.1:{upstream.ports[0]}/v1/chat/completions"
    options = {"include_usage": True}
    for more, usages in (({}, 0), ({"stream_options": options}, 1)):
        text = httpx.post(url, json={**CHAT, "stream": True, **more}, trust_env=False).text
        assert text.count('"usage"') == usages
        assert text.endswith("data: [DONE]\n\n")


@needs_compiler
@pytest.mark.parametrize(
    ("value", "count"), [("a", 1), (["a", 'b"]', "c\\"], 3), ([[1, 2], [3]], 2)]
)
def test_one_vector_per_input(upstream: Upstream, value: object, count: int) -> None:
    url = f"http://127.0.0.1:{upstream.ports[0]}/v1/embeddings"
    answer = httpx.post(url, json={"model": "m", "input": value}, trust_env=False).json()
    assert [item["index"] for item in answer["data"]] == list(range(count))
    assert {len(item["embedding"]) for item in answer["data"]} == {4}


@needs_compiler
def test_connections_are_held_while_the_block_runs(
    programs: Path, upstream: Upstream, tmp_path: Path
) -> None:
    once = body(tmp_path, "/v1/chat/completions", CHAT)
    content = "events:100000 gap-us:1000"
    (tmp_path / "long").write_bytes(
        orjson.dumps({**CHAT, "stream": True, "messages": [{"role": "user", "content": content}]})
    )
    long = f"/v1/chat/completions={tmp_path / 'long'}"
    with Client(programs / "client", "key").hold(upstream.ports[0], 5, 3, [once, long]):
        pass  # leaving fails if a stream had ended or an answer was wrong


@needs_compiler
def test_a_failed_request_fails_the_measurement(programs: Path, tmp_path: Path) -> None:
    client = Client(programs / "client", "key")
    with pytest.raises(BenchmarkError, match=r"the load client failed.*refused"):
        client.run("closed", free_port(), 1, 0.05, [body(tmp_path, "/x", {})])


def test_a_peer_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot be run"):
        gateways.vllm_router(str(tmp_path / "no-python"), [1], tmp_path)


def contestant(name: str) -> Contestant:
    return Contestant(name, "1", {}, lambda log: pytest.fail("not started here"))


def test_claims_speak_of_cases_that_run() -> None:
    options = _quick(OverheadOptions())
    claims = _claims([contestant(SAGE), contestant("vllm-router 1")], options)
    cases = {claim.case for claim in claims}
    assert cases == {
        "chat, 1 connections",
        "embeddings",
        "first byte at 500/s",
        "fresh, 50 idle and 10 streams",
    }
    assert all(claim.peer == SAGE for claim in claims if claim.system != SAGE)
    full = _claims([contestant(SAGE), contestant("vllm-router 1")], OverheadOptions())
    bounds = {claim.name: claim.bound for claim in full}
    assert bounds["cpu at 16 beside vllm-router 1"] == pytest.approx(1 / 0.6)
    assert bounds["cpu at 1 beside vllm-router 1"] == pytest.approx(1 / 0.8)
    assert bounds["requests/s at 64 beside vllm-router 1"] == pytest.approx(1 / 1.5)


def measurement(case: str, **values: float) -> Measurement:
    return Measurement(case, SAGE, "peer", 0, 0, False, "2026-11-26", values, 1.0, None, {}, None)


def test_a_case_has_tables_of_its_own_metrics_only() -> None:
    metrics = [Metric("cpu_us", "us", "lower"), Metric("rss_mb", "MB", "lower")]
    summary = summarise(
        "u", Overhead.name, "t", metrics, [],
        [measurement("chat", cpu_us=5.0), measurement("memory", rss_mb=40.0)],
    )  # fmt: skip
    assert [(t.case, t.metric.name) for t in summary.tables] == [
        ("chat", "cpu_us"),
        ("memory", "rss_mb"),
    ]
