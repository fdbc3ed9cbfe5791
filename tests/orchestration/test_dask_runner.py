"""Pipelines on Dask workers without Prefect; the workers are threads of this process."""

from __future__ import annotations

import pytest
from distributed import Client, LocalCluster

from sage_prefect.common.errors import (
    ClusterError,
    EngineUnavailable,
    GraphError,
    OperatorError,
    PipelineError,
    UnschedulableError,
)
from sage_prefect.kernel.pipeline import Pipeline
from sage_prefect.kernel.resources import Resources
from sage_prefect.kernel.runners import runner
from sage_prefect.orchestration.dask_runner import DaskRunner
from sage_prefect.platform.run_store import FileRunStore

pytestmark = pytest.mark.leaks("Dask keeps threads of its event loop")

ROWS = [{"k": number % 3, "n": number} for number in range(256)]
FAILED: set[int] = set()
CALLS: list[int] = []


@pytest.fixture(scope="module")
def dask():
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            resources={"CPU": 1},
            silence_logs=40,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def once(row):
    if row["n"] % 100 == 7 and row["n"] not in FAILED:
        FAILED.add(row["n"])
        raise EngineUnavailable("down, once")
    CALLS.append(row["n"])
    return {"m": row["n"]}


def pipeline():
    return (
        Pipeline("sums")
        .source(ROWS)
        .map(once, adds=("m",), resources=Resources(cpu=1))
        .aggregate(by="k", total=("m", "sum"))
        .sort("k")
        .sink()
    )


def test_rows_retries_and_progress(dask):
    FAILED.clear()
    seen = []
    report = runner("dask").run(
        pipeline(), cluster=dask, partitions=4, retry_delay_s=0.0, max_in_flight=2,
        on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert report.committed.data.to_pylist() == [
        {"k": key, "total": sum(range(key, 256, 3))} for key in range(3)
    ]
    assert sum(stage.retries for stage in report.summary()) == 3
    assert report.rows_read == len(ROWS)
    assert seen[-1] == (9, 9)
    assert {stage.worker for stage in report.stages} <= {"0", "1"}


def test_a_failure_ends_the_run_and_the_next_one_resumes(dask, tmp_path, monkeypatch):
    monkeypatch.setenv("SAGE_HOME", str(tmp_path))
    FAILED.clear()
    CALLS.clear()
    store = FileRunStore(tmp_path / "log")
    with pytest.raises(OperatorError, match=r"'once' failed.*down, once"):
        runner("dask").run(
            pipeline(), cluster=dask, partitions=4, retries=0, store=store, max_in_flight=1
        )
    before = len(CALLS)
    FAILED.update(range(256))
    report = runner("dask").run(pipeline(), cluster=dask, partitions=4, store=store)
    assert report.committed.rows == 3
    assert report.reused_partitions == before // 64
    assert list((tmp_path).rglob("*.exchange")) == []


def test_what_cannot_run_is_refused(dask):
    wish = Pipeline("p").source(ROWS).map(once, resources=Resources(gpu=1)).sink()
    with pytest.raises(UnschedulableError, match="GPU=1"):
        DaskRunner().run(wish, cluster=dask)
    with pytest.raises(GraphError, match="max_in_flight=0"):
        DaskRunner().run(pipeline(), cluster=dask, max_in_flight=0)
    with pytest.raises(PipelineError, match="makes no flows"):
        DaskRunner().to_flow(pipeline())
    with pytest.raises(PipelineError, match="makes no tasks"):
        DaskRunner().operator_task(wish)


def test_no_cluster(monkeypatch):
    monkeypatch.setattr("sage_prefect.orchestration.dask_runner.dask_address", lambda: None)
    with pytest.raises(ClusterError, match="no Dask scheduler is known"):
        DaskRunner().run(pipeline())
    monkeypatch.setattr("sage_prefect.orchestration.dask_runner._CONNECT_LIMIT_S", 0.2)
    with pytest.raises(
        ClusterError, match=r"cannot reach the Dask scheduler at tcp://127\.0\.0\.1:1"
    ):
        DaskRunner().run(pipeline(), cluster="tcp://127.0.0.1:1")
