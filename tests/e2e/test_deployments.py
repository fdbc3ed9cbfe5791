"""``prefect deploy --all`` from the checkout, and a worker that runs what was deployed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).parents[2]
EXPECTED = {"ingest/nightly", "answer/morning", "benchmark/weekly"}


def client_env(stack) -> dict[str, str]:
    """What `eval "$(sage env)"` adds for Prefect."""
    code = "import json; from sage_prefect.orchestration.services import connect_env; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(json.dumps(connect_env()))"],
        env=stack.env,
        capture_output=True,
        text=True,
        check=True,
    )
    return {**stack.env, **json.loads(done.stdout)}


@pytest.fixture(scope="module")
def api(stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.endpoint("prefect") + "/", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def deployments(stack, api) -> dict[str, dict[str, Any]]:
    """All deployments of prefect.yaml, by ``flow/name``."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command,
        env=client_env(stack),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    flows = {flow["id"]: flow["name"] for flow in post(api, "flows/filter")}
    found = {f"{flows[d['flow_id']]}/{d['name']}": d for d in post(api, "deployments/filter")}
    return {name: found[name] for name in EXPECTED}


def post(api: httpx.Client, path: str, body: dict[str, Any] | None = None) -> Any:
    """POST; tries again where Prefect says that SQLite is busy (503)."""

    def answer() -> httpx.Response | None:
        response = api.post(path, json=body or {})
        return None if response.status_code == 503 else response.raise_for_status()

    return until(answer, f"POST {path}").json()


def until(look: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
    """The first true answer of ``look``."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"waited {limit_s:g} s for {what}")


def run(api: httpx.Client, deployment: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Start a run now; return when a worker has completed it."""
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    made = post(api, f"deployments/{deployment['id']}/create_flow_run", body)

    def state() -> dict[str, Any] | None:
        now = api.get(f"flow_runs/{made['id']}").raise_for_status().json()["state"]
        return now if now["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    ended = until(state, f"run of {deployment['name']}", limit_s=300)
    if ended["type"] != "COMPLETED":
        body = {"logs": {"flow_run_id": {"any_": [made["id"]]}}}
        logs = "\n".join(entry["message"] for entry in post(api, "logs/filter", body))
        pytest.fail(f"{ended['type']}: {ended['message']}\n{logs}")


def test_deployments_are_on_schedules_in_the_process_pool(deployments):
    for deployment in deployments.values():
        assert deployment["work_pool_name"] == "sage-process"
        schedule = deployment["schedules"][0]
        assert schedule["active"]
        assert schedule["slug"]
        assert schedule["schedule"]["timezone"] == "UTC"
        assert schedule["schedule"]["cron"]


def test_parameters_show_as_forms(deployments):
    schema = deployments["ingest/nightly"]["parameter_openapi_schema"]
    assert set(schema["properties"]) == {"corpus", "reuse"}
    assert schema["properties"]["reuse"]["enum"] == ["always", "unfinished", "never"]
    for deployment in deployments.values():
        schema = deployment["parameter_openapi_schema"]
        for name, field in schema["properties"].items():
            # One that says the same as its model's docstring is not repeated.
            model = schema["definitions"].get(field.get("$ref", "").rpartition("/")[2], {})
            assert field.get("description", model.get("description")), (deployment["name"], name)
        for model in schema["definitions"].values():
            for name, field in model["properties"].items():
                assert field["description"], (deployment["name"], name)


def test_worker_runs_ingest_and_answer(deployments, api, stack, tmp_path):
    import pyarrow.parquet as pq

    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "moon.md").write_text("# Moon\n\nThe moon of planet Xylo is called Brin.\n")
    (docs / "sea.md").write_text("# Sea\n\nThe largest sea of planet Xylo is called Tarn.\n")
    corpus = {"docs": [str(docs)], "index": "xylo"}
    run(api, deployments["ingest/nightly"], {"corpus": corpus, "reuse": "never"})

    asked = tmp_path / "questions.jsonl"
    asked.write_text('{"question": "What is the moon of Xylo called?"}\n')
    output = tmp_path / "answers.parquet"
    parameters = {
        "questions": {"file": str(asked), "index": "xylo", "k": 1},
        "answers": {"max_tokens": 8, "output": str(output)},
    }
    run(api, deployments["answer/morning"], parameters)
    (row,) = pq.read_table(output).to_pylist()
    assert [Path(source).name for source in row["sources"]] == ["moon.md"]
    assert row["answer"].strip()


@pytest.mark.slow
def test_worker_runs_a_benchmark(deployments, api, tmp_path):
    experiment = {"name": "imports", "quick": True, "rounds": 2, "out": str(tmp_path)}
    run(api, deployments["benchmark/weekly"], {"experiment": experiment})
    assert list(tmp_path.rglob("manifest.json"))


def test_handwritten_flow_runs_as_a_script(stack):
    script = REPOSITORY / "flows" / "handwritten.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        env=client_env(stack),
        cwd=stack.home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Prefect schedules flows" in done.stdout
