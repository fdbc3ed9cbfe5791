"""Targets, arrivals, prompts, records, summaries, and the command."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from sage_bench.cli import app
from sage_bench.load import record as outcome
from sage_bench.load.arrivals import Process, arrival_times
from sage_bench.load.client_meter import ClientLoad
from sage_bench.load.prompts import RequestShape, Words
from sage_bench.load.record import RequestRecord, read_records, write_records
from sage_bench.load.run import LoadRun
from sage_bench.load.summary import Objectives, quantiles, summarise
from sage_bench.load.target import Target
from sage_prefect.common.errors import BenchmarkError, CorruptFileError, UnknownNameError

# -- targets ------------------------------------------------------------------------------


def test_targets() -> None:
    target = Target.parse("http://127.0.0.1:8888")
    assert (target.url, target.host_header) == ("http://127.0.0.1:8888/v1", "127.0.0.1:8888")
    assert Target.parse("http://[::1]:80/api/v1/").url == "http://[::1]:80/api/v1"
    assert Target.parse("http://127.9.9.9").port == 80
    assert Target.parse("https://localhost").port == 443
    assert Target.parse("http://localhost:1").address in ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8888",
        "ftp://127.0.0.1",
        "http://",
        "http://127.0.0.1:99999",
        "http://127.0.0.1/?a=b",
        "http://user@127.0.0.1",
        "http://0.0.0.0:80",
        "http://192.0.2.1/v1",
    ],
)
def test_refused_targets(url: str) -> None:
    with pytest.raises(BenchmarkError):
        Target.parse(url)


def test_other_machines_only_when_allowed() -> None:
    with pytest.raises(BenchmarkError, match="--allow-remote"):
        Target.parse("http://192.0.2.1")
    assert Target.parse("http://192.0.2.1", allow_remote=True).address == "192.0.2.1"


# -- arrivals and prompts -----------------------------------------------------------------


@pytest.mark.parametrize(("process", "cv"), [("poisson", 1.0), ("gamma", 3.0), ("constant", 1.0)])
def test_arrivals_have_the_rate_and_repeat_by_seed(process: Process, cv: float) -> None:
    n = 20_000
    first = list(itertools.islice(arrival_times(process, 50.0, random.Random(1), cv=cv), n))
    again = list(itertools.islice(arrival_times(process, 50.0, random.Random(1), cv=cv), n))
    assert first == again
    assert first == sorted(first)
    assert n / first[-1] == pytest.approx(50.0, rel=0.08)
    gaps = [b - a for a, b in itertools.pairwise(first)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean
    assert spread == pytest.approx(0.0 if process == "constant" else cv, rel=0.1, abs=1e-6)


def test_odd_arrivals_are_refused() -> None:
    with pytest.raises(BenchmarkError):
        arrival_times("poisson", 0.0, random.Random(0))
    with pytest.raises(BenchmarkError):
        arrival_times("gamma", 1.0, random.Random(0), cv=float("nan"))
    with pytest.raises(UnknownNameError, match="poisson"):
        arrival_times("poison", 1.0, random.Random(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 7, 65_536, 70_000])
def test_prompts_have_so_many_words(count: int) -> None:
    text = Words(0).cut(count, random.Random(3))
    assert len(text.split()) == count
    assert len(text) == 4 * count - 1


def test_shapes() -> None:
    shape = RequestShape("m", prompt_tokens=20, output_tokens=5, prefix_tokens=8, band="batch")
    first, second = itertools.islice(shape.requests(7), 2)
    again = next(shape.requests(7))
    assert again == first
    body, other = orjson.loads(first.body), orjson.loads(second.body)
    words = body["messages"][0]["content"].split()
    others = other["messages"][0]["content"].split()
    assert len(words) == len(others) == 20
    assert words[:8] == others[:8]
    assert words[8:] != others[8:]
    assert body["max_tokens"] == 5
    assert body["stream_options"] == {"include_usage": True}
    assert first.headers == (("x-sage-band", "batch"),)
    completion = next(RequestShape("m", "completion", stream=False).requests(0))
    assert not completion.stream
    assert "prompt" in orjson.loads(completion.body)
    embedding = next(RequestShape("m", "embedding", prompt_tokens=9, inputs=3).requests(0))
    assert (embedding.inputs, embedding.prompt_tokens, embedding.stream) == (3, 27, False)
    assert len(orjson.loads(embedding.body)["input"]) == 3


@pytest.mark.parametrize(
    "sizes", [{"prompt_tokens": 0}, {"inputs": 0}, {"prefix_tokens": 999}, {"output_tokens": -1}]
)
def test_odd_shapes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(BenchmarkError):
        RequestShape("m", **sizes)  # type: ignore[arg-type]


# -- records and summaries ----------------------------------------------------------------


def record(index: int, **changes: object) -> RequestRecord:
    made = RequestRecord(
        index, f"load-{index}", "chat", True, "t", "batch" if index % 2 else "interactive", 0,
        scheduled_s=float(index), started_s=index + 0.001, sent_s=index + 0.002,
        first_byte_s=index + 0.1, first_token_s=index + 0.2, last_token_s=index + 1.2,
        finished_s=index + 1.3, status=200, chunks=11, max_gap_s=0.15, output_tokens=11,
        prompt_tokens=100,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def run_of(records: list[RequestRecord], cpu_share: float = 0.1, loop: str = "open") -> LoadRun:
    load = ClientLoad(10.0, cpu_share * 10, cpu_share, 1.0, 2.0, 50.0, 0.0)
    began = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return LoadRun(loop, records, began, load, 1, 1, 0.0, 10.0)  # type: ignore[arg-type]


def test_records_survive_the_file(tmp_path: Path) -> None:
    records = [record(0), record(1, error=outcome.STATUS, status=429, retry_after_s=2.0)]
    file = tmp_path / "a" / "run.parquet"
    write_records(file, records, {"valid": True})
    assert read_records(file) == (records, {"valid": True})
    table = pq.read_table(file)
    assert table["ttft_s"].to_pylist() == [pytest.approx(0.2), pytest.approx(0.2)]
    assert table["e2e_s"].to_pylist() == [pytest.approx(1.3), None]


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.parquet"
    with pytest.raises(CorruptFileError):
        read_records(file)
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(CorruptFileError, match="version none"):
        read_records(file)
    file.write_bytes(b"no parquet")
    with pytest.raises(CorruptFileError):
        read_records(file)


def test_summary_counts_every_offered_request() -> None:
    records = [record(i) for i in range(8)]
    records += [
        record(8, error=outcome.STATUS, status=429, retry_after_s=1.0),
        record(9, error=outcome.ABANDONED),
        record(10, warmup=True),
    ]
    summary = summarise(run_of(records), Objectives(ttft_s=0.5, tpot_s=0.2))
    assert summary["valid"]
    assert (summary["offered"], summary["completed"], summary["failed"]) == (10, 8, 1)
    assert summary["warmup_requests"] == 1
    assert summary["errors"] == {"status": 1, "abandoned": 1}
    assert summary["good_share"] == pytest.approx(0.8)
    assert summary["goodput_per_s"] == pytest.approx(0.8)
    assert summary["with_retry_after"] == 1
    assert summary["ttft_ms"]["p50"] == pytest.approx(200)
    assert summary["ttft_ms"]["p99"] is None, "8 requests say nothing of a p99"
    assert summary["bands"]["batch"]["offered"] == 5
    orjson.dumps(summary)


def test_objectives() -> None:
    assert Objectives().met_by(record(0))
    assert not Objectives(ttft_s=0.1).met_by(record(0))
    assert not Objectives(tpot_s=0.05).met_by(record(0))
    assert not Objectives(e2e_s=1.0).met_by(record(0))
    assert not Objectives().met_by(record(0, error=outcome.TRUNCATED))


def test_invalid_runs_say_why() -> None:
    late = [record(i, started_s=i + 0.02) for i in range(5)]
    for run, words in [
        (run_of(late), "schedule error"),
        (run_of([record(0)], cpu_share=0.95), "95%"),
        (run_of([record(0, error=outcome.CLIENT_LIMIT)]), "too many in flight"),
        (run_of([record(0, warmup=True)]), "warm-up"),
    ]:
        summary = summarise(run)
        assert not summary["valid"]
        assert words in summary["problems"][0]
    assert summarise(run_of(late, loop="closed"))["valid"]


def test_quantiles_of_nothing() -> None:
    assert quantiles([None, None]) == {"n": 0}


# -- the command --------------------------------------------------------------------------

runner = CliRunner()


class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 4}}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("loop", [("--rate", "1000"), ("--concurrency", "2")])
def test_command(url: str, tmp_path: Path, loop: tuple[str, str]) -> None:
    file = tmp_path / "run.parquet"
    arguments = ["load", "--url", url, "--model", "m", *loop, "--requests", "20", "--no-stream"]
    answer = runner.invoke(app, [*arguments, "--json", "--out", str(file)])
    summary = orjson.loads(answer.stdout)
    # Whether the client kept its times is the machine's business; that it says so is ours.
    assert answer.exit_code == (0 if summary["valid"] else 3)
    assert summary["completed"] == summary["offered"] == 20
    records, stored = read_records(file)
    assert len(records) == 20
    assert stored["began_at"] == summary["began_at"]
    shown = runner.invoke(app, arguments)
    assert "20 completed" in shown.stdout
    assert "schedule error" in shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rate", "5"],
        ["--rate", "5", "--concurrency", "1", "--requests", "1"],
        ["--requests", "1"],
        ["--rate", "5", "--requests", "1", "--timeout", "0"],
        ["--rate", "5", "--requests", "1", "--kind", "chatt"],
        ["--rate", "5", "--requests", "1", "--arrivals", "x"],
        ["--concurrency", "0", "--requests", "1"],
    ],
)
def test_command_refuses_nonsense(arguments: list[str]) -> None:
    answer = runner.invoke(app, ["load", "--url", "http://127.0.0.1:9", "--model", "m", *arguments])
    assert isinstance(answer.exception, (BenchmarkError, UnknownNameError))
