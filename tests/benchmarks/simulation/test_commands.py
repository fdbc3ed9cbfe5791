"""``sage bench simulate`` and ``sage bench policies`` as a user meets them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from sage_bench.claims import Verdict
from sage_bench.cli import app
from sage_bench.result_folder import ResultFolder
from sage_bench.simulation.experiment_run import PolicyResult, Run
from sage_bench.simulation.targets import Measure, TargetClaim, judge
from sage_prefect.common.errors import BenchmarkError, SettingsError, UnknownNameError

runner = CliRunner()
SCENARIO = {
    "name": "tiny",
    "about": "A test.",
    "duration_s": 20,
    "warmup_s": 2,
    "seeds": [0, 1],
    "best_by": "chat.goodput",
    "engines": [{"name": "llm", "count": 2}],
    "workloads": [
        {
            "name": "chat",
            "arrival": {"process": "poisson", "rate": 4},
            "slo": {"ttft_s": 1.0, "tpot_s": 0.1},
        }
    ],
    "policies": [
        "fifo",
        {"use": "baseline:least_outstanding", "name": "tuned", "tune": {"max_num_seqs": [1, 64]}},
    ],
}


def test_simulate_prints_tables_and_writes_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(SCENARIO))
    answer = runner.invoke(app, ["simulate", str(file), "--out", str(tmp_path / "results")])
    assert answer.exit_code == 0, answer.output
    assert "tuned (max_num_seqs=64)" in answer.output
    assert "max_num_seqs=1)" not in answer.output
    [path] = (tmp_path / "results" / "simulate-tiny").iterdir()
    folder = ResultFolder.open(path)
    manifest = folder.read_manifest()
    assert manifest.backend_kind == "calibrated-sim"
    assert [system.name for system in manifest.systems] == [
        "fifo",
        "tuned (max_num_seqs=1)",
        "tuned (max_num_seqs=64)",
    ]
    rows = list(folder.read("runs"))
    assert [(row["policy"], row["seed"]) for row in rows[:2]] == [("fifo", 0), ("fifo", 1)]
    table = pq.read_table(path / "runs.parquet")
    assert table.num_rows == 6
    assert {"policy", "seed", "chat.goodput", "all.jain"} <= set(table.column_names)
    requests = pq.read_table(path / "requests")
    assert requests.num_rows == sum(row["requests"] for row in rows)
    assert set(requests["policy"].to_pylist()) == {"fifo", "tuned"}
    assert len(manifest.raw_files) == 2 + 6
    summary = folder.read_json("summary.json")
    assert summary["best"] == {"fifo": "fifo", "tuned": "tuned (max_num_seqs=64)"}
    assert (path / "summary.md").read_text().startswith("# tiny")


def test_simulate_takes_some_policies_and_another_length(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(SCENARIO))
    options = ["--policy", "fifo", "--seeds", "1", "--duration", "10", "--out", str(tmp_path)]
    answer = runner.invoke(app, ["simulate", str(file), *options])
    assert answer.exit_code == 0, answer.output
    assert "tuned" not in answer.output
    processes = runner.invoke(app, ["simulate", str(file), *options, "--processes", "2"])
    assert processes.exit_code == 0, processes.output
    assert processes.output.split("Files")[0] == answer.output.split("Files")[0]


def test_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**SCENARIO, "best_by": None}))
    answer = runner.invoke(app, ["simulate", str(file), "--out", str(tmp_path)])
    assert isinstance(answer.exception, BenchmarkError)
    assert "2 variants and no best_by" in str(answer.exception)
    answer = runner.invoke(app, ["simulate", "no-gian"])
    assert isinstance(answer.exception, UnknownNameError)
    file.write_text(yaml.safe_dump({**SCENARIO, "durations": 1}))
    answer = runner.invoke(app, ["simulate", str(file)])
    assert isinstance(answer.exception, SettingsError)
    answer = runner.invoke(app, ["policies", "17"])
    assert isinstance(answer.exception, UnknownNameError)
    assert "target '17'" in str(answer.exception)
    answer = runner.invoke(app, ["policies", "--policy", "hybird"])
    assert "Did you mean 'hybrid'" in str(answer.exception)


def test_policies_prints_claims_and_their_verdicts(tmp_path: Path) -> None:
    answer = runner.invoke(
        app, ["policies", "-", "--seeds", "1", "--out", str(tmp_path), "--check"]
    )
    assert answer.exit_code == 3, answer.output
    assert "Where nothing can be gained" in answer.output
    assert "UNPROVED" in answer.output


@pytest.mark.parametrize(
    ("values", "bound", "at_least", "verdict"),
    [
        ([1.0, 1.01, 0.99, 1.0, 1.0], 0.9, True, Verdict.PASS),
        ([1.0, 1.01, 0.99, 1.0, 1.0], 1.0, True, Verdict.UNPROVED),
        ([1.0, 1.01, 0.99, 1.0, 1.0], 1.1, True, Verdict.FAIL),
        ([1.0, 1.01, 0.99, 1.0, 1.0], 1.1, False, Verdict.PASS),
        ([1.0, float("nan"), 1.0], 0.1, True, Verdict.UNPROVED),
        ([1.0], 0.1, True, Verdict.UNPROVED),
    ],
)
def test_claims_are_judged_at_the_end_that_speaks_against_them(
    values: list[float], bound: float, at_least: bool, verdict: Verdict
) -> None:
    runs = tuple(
        Run("p", "p", seed, {"m": value, "two": 2.0}, 0.0, 0.0, 1)
        for seed, value in enumerate(values)
    )
    results = {"s": {"p": PolicyResult("p", "p", runs)}}
    claim = TargetClaim("text", Measure("s", "p", "m"), bound, at_least)
    assert judge(claim, results).verdict is verdict
    halved = TargetClaim("t", Measure("s", "p", "m"), bound / 2, at_least, Measure("s", "p", "two"))
    assert judge(halved, results).verdict is verdict
