"""Mock engines, load generator and gateway as processes: nothing lost, nothing served twice, and a
live run beside its simulation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from sage_bench.load.client import ClientOptions
from sage_bench.load.prompts import RequestShape
from sage_bench.load.record import RequestRecord, read_records
from sage_bench.load.run import Bounds
from sage_bench.load.session import LoadPlan, execute
from sage_bench.load.target import Target
from sage_bench.result_folder import ResultFolder

pytestmark = pytest.mark.e2e

BENCH = (sys.executable, "-m", "sage_prefect.cli.main", "bench")
Start = Callable[..., dict[str, Any]]


@pytest.fixture
def mock_engines() -> Iterator[Start]:
    """Starts ``sage bench mock-engine`` with these options; what it says of itself."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> dict[str, Any]:
        process = subprocess.Popen(
            [*BENCH, "mock-engine", *options], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"ended with {process.wait(60)}"
        found: dict[str, Any] = json.loads(line)
        return found

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout is not None
        process.stdout.close()


def loaded(urls: list[str], out: Path, *, requests: int, rate: float, **shape: Any) -> Any:
    plan = LoadPlan(
        tuple(Target.parse(url) for url in urls),
        RequestShape("mock", prompt_tokens=50, **{"output_tokens": 20, **shape}),
        Bounds(requests=requests, drain_s=60.0),
        ClientOptions(timeout_s=60.0),
        rate_per_s=rate,
    )
    summary = execute(plan, out)
    return summary, read_records(out)[0]


def books(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What all engines say of their requests."""
    with httpx.Client(timeout=30.0, trust_env=False) as client:
        return [
            record
            for number in range(len(found["engines"]))
            for record in client.get(f"{found['control']}/engines/{number}/requests").json()
        ]


def check_conservation(records: list[RequestRecord], served: list[dict[str, Any]]) -> None:
    """Each completed request was served whole once, and has the tokens that it asked for."""
    done = [record["request_id"] for record in served if record["outcome"] == "done"]
    assert len(done) == len(set(done)), "a request was served twice"
    completed = [record for record in records if record.ok]
    assert {record.request_id for record in completed} <= set(done)
    for record in completed:
        assert record.output_tokens == record.planned_output_tokens == record.chunks
        assert record.prompt_tokens == record.planned_prompt_tokens


def test_load_on_mock_engines_loses_nothing(mock_engines: Start, tmp_path: Path) -> None:
    found = mock_engines("--count", "2", "--time-scale", "5")
    urls = [engine["url"] for engine in found["engines"]]
    summary, records = loaded(urls, tmp_path / "a.parquet", requests=200, rate=100.0)
    assert summary["completed"] == 200
    served = books(found)
    assert len(served) == 200
    check_conservation(records, served)
    assert sum(record["generated"] for record in served) == 200 * 20
    summary, _ = loaded(urls, tmp_path / "b.parquet", requests=40, rate=50.0, kind="embedding")
    assert summary["completed"] == 40


def test_faults_lose_only_what_they_say(mock_engines: Start, tmp_path: Path) -> None:
    found = mock_engines(
        "--time-scale", "5", "--fault", "kill,after_bytes=900,count=3",
        "--fault", "status,status=503,count=2",
    )  # fmt: skip
    urls = [engine["url"] for engine in found["engines"]]
    summary, records = loaded(urls, tmp_path / "a.parquet", requests=50, rate=100.0)
    assert summary["errors"] == {"truncated": 3, "status": 2}
    check_conservation(records, books(found))
    with httpx.Client(timeout=30.0, trust_env=False) as client:
        client.post(f"{found['control']}/faults", json={"kind": "crash", "seconds": 3600})
    summary, _ = loaded(urls, tmp_path / "b.parquet", requests=5, rate=100.0)
    assert summary["errors"] == {"connect": 5}


SCENARIO = {
    "name": "small",
    "duration_s": 8,
    "warmup_s": 0,
    "drain_s": 60,
    "network_ms": 0,
    "progress_s": 0.25,
    "engines": [{"name": "llm", "count": 2}],
    "workloads": [
        {
            "name": "chat",
            "arrival": {"process": "poisson", "rate": 3},
            "length_scale": 0.1,
            "slo": {"ttft_s": 1.0, "tpot_s": 0.1},
        },
        {"name": "batch", "band": "batch", "stream": False, "length_scale": 0.1,
         "arrival": {"process": "poisson", "rate": 1}},
    ],
    "policies": ["least_outstanding", "hybrid"],
}  # fmt: skip


@pytest.mark.slow
def test_a_live_run_beside_its_simulation(tmp_path: Path) -> None:
    """Of times only what cannot depend on the machine is asked for: live is not faster."""
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SCENARIO))
    command = [*BENCH, "live-vs-simulated", str(file), "--out", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "live / simulated" in done.stdout
    [folder] = (tmp_path / "results" / "live-small").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["policies"]) == {"least_outstanding", "hybrid"}
    for name, policy in summary["policies"].items():
        for share in policy["completions"]:
            assert (share["simulated"], share["live"], share["repeat"]) == (1, 1, 1)
        for row in policy["rows"]:
            if row["metric"] == "e2e_s" and name == "least_outstanding":
                assert row["ratio"]["estimate"] > 0.7, row
        for which, live in zip(("first", "second"), policy["live"], strict=True):
            records, _ = read_records(folder / f"{name}-{which}" / "requests.parquet")
            served = [engine["outcomes"] for engine in live["engines"]]
            assert sum(outcomes.get("done", 0) for outcomes in served) == len(records)
            assert {record.engine for record in records} <= {"llm-0", "llm-1"}
    manifest = ResultFolder.open(folder).read_manifest()
    assert manifest.backend_kind == "mock"
    assert all((folder / name).is_file() for name in manifest.raw_files)
    assert (folder / "summary.md").read_text().count("## Policy") == 2


@pytest.mark.slow
def test_the_search_for_the_generators_limit() -> None:
    command = [*BENCH, "load-limits", "requests", "--first-rate", "20000", "--seconds", "2"]
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["requests"]
    assert steps[-1]["problems"]
    assert not any(step["problems"] for step in steps[:-1])
