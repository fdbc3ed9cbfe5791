"""Pipelines as Prefect flows on two tagged Dask workers: placement, retries, resume, faults."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st

from sage_prefect.common.errors import (
    ClusterError,
    EngineUnavailable,
    OperatorError,
    PipelineError,
    UnschedulableError,
)
from sage_prefect.kernel.operator import Operator, operator
from sage_prefect.kernel.pipeline import Pipeline
from sage_prefect.kernel.report import RunReport
from sage_prefect.kernel.resources import Resources
from sage_prefect.kernel.runners import runner

pytestmark = [
    pytest.mark.e2e,
    # Prefect leaves its clients' sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ON_CPU, ON_GPU = Resources(cpu=1), Resources(gpu=1)
PARTITIONS = 6


class Flows:
    """What these tests know of the running servers."""

    def __init__(self, api_url: str, dask: str) -> None:
        from distributed import Client

        self.api = httpx.Client(base_url=api_url)
        self.dask = Client(dask, set_as_default=False)
        self.address = dask

    def run(self, pipeline: Pipeline, **options: Any) -> RunReport:
        return runner("prefect").run(pipeline, **{"retry_delay_s": 0.1, **options})

    def task_runs(self, run_id: str, expected: int) -> list[dict[str, Any]]:
        """Task runs of a flow run; Prefect records them shortly after they ended."""

        def found() -> list[dict[str, Any]] | None:
            body = {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200}
            runs = self.api.post("task_runs/filter", json=body).raise_for_status().json()
            ended = [run for run in runs if run["state_type"] in ("COMPLETED", "FAILED")]
            return runs if len(ended) >= expected else None

        return until(found, f"{expected} task runs of {run_id} to end")

    def artifacts(self, run_id: str) -> list[dict[str, Any]]:
        body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        return self.api.post("artifacts/filter", json=body).raise_for_status().json()

    def worker_pid(self, name: str) -> int:
        workers = self.dask.scheduler_info()["workers"]
        address = next(key for key, worker in workers.items() if worker["name"] == name)
        return self.dask.run(os.getpid, workers=[address])[address]

    def tasks_of_scheduler(self) -> int:
        return self.dask.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


def until(look: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
    """The first true answer of ``look``."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {limit_s:g} s for {what}")


@pytest.fixture(scope="module")
def flows(stack) -> Iterator[Flows]:
    """This process as a client of the session's servers."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SAGE_HOME", str(stack.home))
    from sage_prefect.orchestration.services import connect_env

    for variable, value in connect_env().items():
        patch.setenv(variable, value)
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_HOME,
        PREFECT_LOGGING_LEVEL,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
        temporary_settings,
    )

    settings = {
        PREFECT_API_URL: os.environ["PREFECT_API_URL"],
        PREFECT_HOME: os.environ["PREFECT_HOME"],
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
        PREFECT_LOGGING_LEVEL: "WARNING",
    }
    with temporary_settings(settings):
        made = Flows(os.environ["PREFECT_API_URL"] + "/", stack.endpoint("dask"))
        yield made
        made.dask.close()
        made.api.close()
    patch.undo()
    gc.collect()


# -- operators; they travel to the workers by value, with this test module ----------------------


@pytest.fixture(scope="module", autouse=True)
def _ship_this_module(flows):
    """Workers cannot import tests."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@operator("double", reads=("a",), adds=("b",))
def double(row):
    return {"b": row["a"] * 2}


@operator("increment", reads=("b",), adds=("c",))
def increment(row):
    return {"c": row["b"] + 1}


class FailFirst(Operator):
    """Fails the first ``times`` calls for each row, counted in files."""

    name = "flaky"
    reads = ("a",)

    def __init__(self, folder: str, times: int, error: str, only: int | None = None) -> None:
        self.folder, self.times, self.error, self.only = folder, times, error, only

    def process(self, batch):
        for row in batch.column("a").to_pylist():
            calls = Path(self.folder) / f"{row}.calls"
            with calls.open("a") as file:
                file.write("x")
            if (self.only is None or row == self.only) and calls.stat().st_size <= self.times:
                if self.error == "down":
                    raise EngineUnavailable("engine 'embedding' at http://127.0.0.1:1 is down.")
                raise ValueError("row is bad")
        return batch


class Gate(Operator):
    """Says that it has begun, and goes on when it is let."""

    name = "gate"
    reads = ("a",)

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def process(self, batch):
        row = batch.column("a")[0].as_py()
        with (Path(self.folder) / f"begun-{row}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        deadline = time.monotonic() + 120
        while not (Path(self.folder) / "open").exists():
            if time.monotonic() > deadline:
                raise TimeoutError("the gate was never opened")
            time.sleep(0.02)
        return batch


def rows(count: int = PARTITIONS) -> list[dict[str, int]]:
    return [{"a": number} for number in range(count)]


def source(count: int = PARTITIONS):
    from sage_prefect.kernel.source import CollectionSource

    return CollectionSource(rows(count), rows_per_part=1)


def two_stages(name: str = "two-stages") -> Pipeline:
    return (
        Pipeline(name)
        .source(source())
        .map(double, resources=ON_CPU)
        .map(increment, resources=ON_GPU)
        .sink()
    )


def to_file(name: str, folder: Path, *steps: tuple[Any, Resources]) -> Pipeline:
    """Steps between numbered rows and ``folder/out.jsonl``."""
    from sage_prefect.middleware import WriteJsonl

    pipeline = Pipeline(name).source(source())
    for step, placement in steps:
        pipeline = pipeline.map(step, resources=placement)
    return pipeline.sink(WriteJsonl(folder / "out.jsonl"))


def written(folder: Path) -> list[int]:
    lines = (folder / "out.jsonl").read_text().splitlines()
    return [json.loads(line)["a"] for line in lines]


# -- the plan becomes task runs -----------------------------------------------------------------


def test_each_stage_runs_where_it_wishes_one_task_per_partition(flows):
    report = flows.run(two_stages(), partitions=PARTITIONS)
    table = report.committed.data.sort_by("a").to_pydict()
    assert table["c"] == [2 * a + 1 for a in range(PARTITIONS)]
    assert {stage.worker for stage in report.stages if stage.stage == 0} == {"cpu-0"}
    assert {stage.worker for stage in report.stages if stage.stage == 1} == {"gpu-0"}

    runs = flows.task_runs(report.run_id, 2 * PARTITIONS)
    names = Counter(run["name"] for run in runs)
    assert names == Counter(
        f"{stage}[{n}/{PARTITIONS}]"
        for stage in ("collection+double", "increment+collect")
        for n in range(1, PARTITIONS + 1)
    )
    for run in runs:
        assert run["state_type"] == "COMPLETED"
        second = run["name"].startswith("increment")
        assert {"pipeline:two-stages", "resource:gpu" if second else "resource:cpu"} <= set(
            run["tags"]
        )
        # The edge from stage to stage shows in the UI's graph.
        upstream = [item["id"] for item in run["task_inputs"].get("upstream", [])]
        assert len(upstream) == (1 if second else 0)


def test_progress_plan_and_figures_are_artifacts(flows):
    report = flows.run(two_stages("shown"), partitions=PARTITIONS)
    by_key = {artifact["key"]: artifact for artifact in flows.artifacts(report.run_id)}
    assert float(by_key["shown-stage-0"]["data"]) == 100.0
    assert float(by_key["shown-stage-1"]["data"]) == 100.0
    assert "data:image/svg+xml" in by_key["shown-plan"]["data"]
    table = json.loads(by_key["shown-stages"]["data"])
    assert [row["rows in"] for row in table if row["stage"] == 1] == [PARTITIONS]


def test_operator_granularity_gives_the_same_rows(flows):
    report = flows.run(two_stages("finer"), granularity="operator", partitions=2)
    assert sorted(report.committed.data["c"].to_pylist()) == [2 * a + 1 for a in range(PARTITIONS)]
    names = {run["name"] for run in flows.task_runs(report.run_id, 8)}
    assert names == {
        f"{name}[{n}/2]"
        for name in ("collection", "double", "increment", "collect")
        for n in (1, 2)
    }


@pytest.mark.parametrize("options", [{"runner": "stock"}, {"cluster": "threads"}])
def test_other_runners_give_the_same_rows(flows, options):
    report = flows.run(two_stages("other"), partitions=2, **options)
    assert sorted(report.committed.data["c"].to_pylist()) == [2 * a + 1 for a in range(PARTITIONS)]
    workers = {stage.worker for stage in report.stages}
    assert workers == ({"cpu-0", "gpu-0"} if "runner" in options else {"threads"})


def test_flow_parameters_override_and_runs_inside_an_event_loop(flows):
    flow = two_stages("parameters").to_flow(partitions=2)

    async def both() -> tuple[RunReport, RunReport]:
        return await flow(partitions=3), flows.run(two_stages("in-loop"), partitions=2)

    first, second = asyncio.run(both())
    assert (first.partitions, second.partitions) == (3, 2)


def test_progress_is_reported(flows):
    seen: list[tuple[int, int]] = []
    flows.run(two_stages("progress"), partitions=3, on_progress=lambda *news: seen.append(news))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# -- refused before anything runs ---------------------------------------------------------------


@pytest.mark.parametrize("wish", [Resources(gpu=8), Resources(labels=("fast-disk",))])
def test_wish_that_no_worker_can_meet(flows, wish):
    pipeline = Pipeline("greedy").source(rows()).map(double, resources=wish).sink()
    with pytest.raises(UnschedulableError) as caught:
        flows.run(pipeline)
    assert "'double'" in str(caught.value)
    assert "gpu-0: GPU=1" in str(caught.value)


def test_no_cluster_and_unreachable_cluster(flows, monkeypatch):
    with pytest.raises(ClusterError, match=r"cannot reach .*tcp://127\.0\.0\.1:1\b"):
        flows.run(two_stages(), cluster="tcp://127.0.0.1:1")
    monkeypatch.setattr("sage_prefect.orchestration.task_runner.dask_address", lambda: None)
    with pytest.raises(ClusterError, match="sage up"):
        flows.run(two_stages())


# -- errors, retries, resume --------------------------------------------------------------------


def test_errors_that_may_pass_are_retried(flows, tmp_path):
    flaky = FailFirst(str(tmp_path), times=2, error="down")
    pipeline = Pipeline("retried").source(source(3)).map(flaky, resources=ON_CPU).sink()
    report = flows.run(pipeline, partitions=3, retries=2)
    assert report.committed.rows == 3
    assert [stage.retries for stage in report.stages] == [2, 2, 2]
    assert {run["run_count"] for run in flows.task_runs(report.run_id, 3)} == {3}


def test_engine_that_stays_down_fails_the_run_naming_partition_and_engine(flows, tmp_path):
    flaky = FailFirst(str(tmp_path), times=99, error="down", only=1)
    pipeline = Pipeline("down").source(source(2)).map(flaky, resources=ON_CPU).sink()
    with pytest.raises(OperatorError) as caught:
        flows.run(pipeline, partitions=2, retries=1)
    assert "operator 'flaky' failed in partition 2/2" in str(caught.value)
    assert "engine 'embedding'" in str(caught.value)
    assert (tmp_path / "1.calls").stat().st_size == 2


def test_errors_that_stay_are_not_retried(flows, tmp_path):
    flaky = FailFirst(str(tmp_path), times=99, error="bad", only=0)
    pipeline = Pipeline("bad").source(source(1)).map(flaky, resources=ON_CPU).sink()
    with pytest.raises(OperatorError, match="ValueError: row is bad"):
        flows.run(pipeline, retries=3)
    assert (tmp_path / "0.calls").stat().st_size == 1


def test_rerun_resumes_without_repeating_finished_partitions(flows, tmp_path):
    flaky = FailFirst(str(tmp_path), times=1, error="bad", only=PARTITIONS - 1)
    pipeline = to_file("resumed", tmp_path, (flaky, ON_CPU), (double, ON_GPU))
    with pytest.raises(OperatorError, match=f"partition {PARTITIONS}/{PARTITIONS}"):
        flows.run(pipeline, partitions=PARTITIONS, max_in_flight=1)
    assert not (tmp_path / "out.jsonl").exists()

    report = flows.run(pipeline, partitions=PARTITIONS)
    assert report.reused_partitions == PARTITIONS - 1
    assert written(tmp_path) == list(range(PARTITIONS))
    calls = [(tmp_path / f"{a}.calls").stat().st_size for a in range(PARTITIONS)]
    assert calls == [1] * (PARTITIONS - 1) + [2]

    again = flows.run(pipeline, partitions=PARTITIONS, reuse="always")
    assert again.reused_partitions == again.partitions == PARTITIONS
    assert (tmp_path / "0.calls").stat().st_size == 1


def test_partitions_that_are_through_are_kept_when_another_fails(flows, tmp_path):
    """All are in flight at once; the first fails while the others wait behind it."""
    flaky = FailFirst(str(tmp_path), times=1, error="bad", only=0)
    pipeline = to_file("kept", tmp_path, (flaky, ON_CPU))
    with pytest.raises(OperatorError):
        flows.run(pipeline, partitions=PARTITIONS)
    report = flows.run(pipeline, partitions=PARTITIONS)
    assert written(tmp_path) == list(range(PARTITIONS))
    assert report.rows_read == PARTITIONS


# -- lost workers and clients -------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["cpu-0", "gpu-0"])
def test_worker_killed_during_a_stage_loses_and_doubles_nothing(flows, tmp_path, victim):
    gate = Gate(str(tmp_path))
    first, second = (gate, double) if victim == "cpu-0" else (double, gate)
    pipeline = to_file(f"killed-{victim}", tmp_path, (first, ON_CPU), (second, ON_GPU))
    reports: list[RunReport] = []
    thread = threading.Thread(
        target=_in_this_context(lambda: reports.append(flows.run(pipeline, partitions=3)))
    )
    thread.start()
    try:
        until(lambda: list(tmp_path.glob("begun-*")), "the stage to begin")
        pid = flows.worker_pid(victim)
        os.kill(pid, signal.SIGKILL)

        def begun_by_others() -> bool:
            pids = {p for file in tmp_path.glob("begun-*") for p in file.read_text().split()}
            return bool(pids - {str(pid)})

        # Dask gives the tasks to the worker that its nanny starts anew.
        until(begun_by_others, "a task to run again", 120)
    finally:
        (tmp_path / "open").touch()
        thread.join(180)
    assert not thread.is_alive()
    assert len(reports) == 1
    assert sorted(written(tmp_path)) == list(range(PARTITIONS))
    assert reports[0].committed.rows == PARTITIONS


@operator("die")
def die(row):
    time.sleep(2)  # so that Prefect hears of the task run before
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_operator_that_kills_each_worker_is_given_up(flows):
    pipeline = Pipeline("deadly").source(source(1)).map(die, resources=ON_CPU).sink()
    flow = pipeline.to_flow()
    with pytest.raises(ClusterError) as caught:
        asyncio.run(flow())
    for words in ("died each time", "partition 1/1", "memory"):
        assert words in str(caught.value)
    body = {"task_runs": {"name": {"like_": "collection+die"}}}

    def crashed() -> bool:
        runs = flows.api.post("task_runs/filter", json=body).json()
        return {run["state_type"] for run in runs} == {"CRASHED"}

    until(crashed, "the task run to show as crashed")


def _in_this_context(function: Callable[[], Any]) -> Callable[[], Any]:
    import contextvars

    context = contextvars.copy_context()
    return lambda: context.run(function)


def test_cancelled_run_leaves_nothing_on_the_cluster(flows, tmp_path):
    pipeline = to_file("cancelled", tmp_path, (Gate(str(tmp_path)), ON_CPU), (double, ON_GPU))
    flow = pipeline.to_flow(partitions=PARTITIONS)

    async def start_and_cancel() -> None:
        running = asyncio.create_task(flow())
        await asyncio.to_thread(until, lambda: list(tmp_path.glob("begun-*")), "a task to begin")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(start_and_cancel())
    (tmp_path / "open").touch()
    until(lambda: flows.tasks_of_scheduler() == 0, "the scheduler to forget the tasks")
    assert not (tmp_path / "out.jsonl").exists()
    assert len(list(tmp_path.glob("begun-*"))) < PARTITIONS


SCRIPT = """
import os, sys, time
from pathlib import Path
from sage_prefect import Pipeline, Resources
from sage_prefect.kernel.source import CollectionSource

folder = Path(sys.argv[1])

def wait(row):
    (folder / f"begun-{row['a']}").touch()
    while not (folder / "open").exists():
        time.sleep(0.02)
    return row

rows = CollectionSource([{"a": a} for a in range(6)], rows_per_part=1)
pipeline = Pipeline("orphan").source(rows).map(wait, resources=Resources(cpu=1)).sink()
from sage_prefect.kernel.runners import runner
runner("prefect").run(pipeline, partitions=6)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_client_that_ends_takes_its_waiting_tasks_along(flows, stack, tmp_path, number):
    script = tmp_path / "orphan.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=stack.env)
    try:
        until(lambda: list(tmp_path.glob("begun-*")), "the run to begin")
        process.send_signal(number)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        (tmp_path / "open").touch()
    until(lambda: flows.tasks_of_scheduler() == 0, "the scheduler to forget the tasks")
    assert len(list(tmp_path.glob("begun-*"))) < 6


# -- hand-written flows -------------------------------------------------------------------------


def test_operators_as_tasks_beside_plain_tasks(flows, tmp_path):
    from prefect import flow, tags, task
    from prefect.context import TaskRunContext

    from sage_prefect.orchestration import cluster_task_runner, run_in_flow

    flaky = FailFirst(str(tmp_path), times=1, error="down").as_task(
        retries=1, retry_delay_seconds=0.1, resources=ON_CPU, tags=["mine"]
    )

    @task
    def total(batches):
        return sum(row["a"] for batch in batches for row in batch)

    @task
    def tags_here(_):
        return sorted(TaskRunContext.get().task_run.tags)

    @flow(task_runner=cluster_task_runner())
    async def handwritten():
        with tags("outer"):
            done = flaky.with_options(name="renamed").map([[row] for row in rows(3)])
            seen = tags_here.submit(done)
        after = tags_here.submit(done)
        report = await run_in_flow(two_stages("inner"), partitions=2)
        return total.submit(done).result(), seen.result(), after.result(), report.committed.rows

    assert asyncio.run(handwritten()) == (3, ["outer"], [], PARTITIONS)
    assert {(tmp_path / f"{a}.calls").stat().st_size for a in range(3)} == {2}


def test_tag_limits_of_the_server_are_kept(flows, tmp_path):
    """Our runner asks the server for leave only for tags that have a limit."""
    from prefect import flow, task

    from sage_prefect.orchestration import cluster_task_runner

    limit = {"tag": "one-at-a-time", "concurrency_limit": 1}

    def make() -> Any:
        answer = flows.api.post("concurrency_limits/", json=limit)
        # SQLite is busy now and then: then Prefect asks clients to try again.
        return None if answer.status_code == 503 else answer.raise_for_status().json()

    made = until(make, "the limit to be made")

    @task(tags=["one-at-a-time"])
    def alone(number):
        mark = tmp_path / "inside"
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        time.sleep(0.3)
        mark.unlink()
        return True

    @flow(task_runner=cluster_task_runner())
    async def limited():
        return [future.result() for future in alone.map(range(3))]

    try:
        assert asyncio.run(limited()) == [True] * 3
    finally:
        flows.api.delete(f"concurrency_limits/{made['id']}")


# -- three runners, one result -------------------------------------------------------------------


@operator("expand", reads=("a",), adds=("copy",), kind="flat_map")
def expand(row):
    return [{"copy": copy} for copy in range(row["a"] % 3)]


def _even(row):
    return row["a"] % 2 == 0


def _key(row):
    return f"key-{row['a'] % 4}"


# Each takes a pipeline with the columns a (number) and k (a few texts) to another that has them.
STEPS: dict[str, Callable[[Pipeline], Pipeline]] = {
    "filter": lambda p: p.filter(_even, reads=("a",)),
    "flat_map": lambda p: p.map(expand),
    "other placement": lambda p: p.map(double, resources=ON_GPU).map(increment, resources=ON_CPU),
    "key_by": lambda p: p.key_by(_key, name="k"),
    "repartition": lambda p: p.repartition(3),
    "by hash": lambda p: p.repartition(by="k"),
    "union": lambda p: p.union(p.filter(_even, reads=("a",))),
    "self-join": lambda p: p.join(p.deduplicate("a"), on="a"),
    "left join": lambda p: p.join(
        Pipeline("side").source([{"k": "key-1", "w": 1}, {"k": None, "w": 2}]), on="k", how="left"
    ),
    "aggregate": lambda p: p.aggregate(by=("a", "k"), n="count"),
    "list": lambda p: p.aggregate(by="k", a=("a", "max"), all=("a", "list")),
    "top_k": lambda p: p.top_k(2, "a", keys="k"),
    "sort": lambda p: p.sort("a", descending=True),
    "sample": lambda p: p.sample(0.7, by="a"),
    "sample n": lambda p: p.sample(n=9, by=("a", "k")),
    "deduplicate": lambda p: p.deduplicate(("a", "k")),
    "window": lambda p: p.key_by("k").window("a", 5, lateness=3),
}


# What deduplicate, top_k and the like choose among equal rows depends on their order, which is that
# of the source until rows change partitions.
KEEP_ORDER = {"filter", "flat_map", "other placement", "key_by", "union", "sort", "sample"}
NEED_NO_ORDER = KEEP_ORDER | {"repartition", "by hash", "left join", "aggregate"}


def draw_steps(draw: Any) -> list[str]:
    steps: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        ordered = KEEP_ORDER.issuperset(steps)
        steps.append(draw(st.sampled_from(sorted(STEPS if ordered else NEED_NO_ORDER))))
    return steps


class FailOnce(Operator):
    """Fails once for each row whose number is in ``rows``, in whatever process it runs."""

    name = "fail-once"
    reads = ("a",)

    def __init__(self, folder: str, rows: tuple[int, ...]) -> None:
        self.folder, self.rows = folder, rows

    def key_params(self):
        return {}

    def process(self, batch):
        for row in batch.column("a").to_pylist():
            if row in self.rows:
                try:
                    (Path(self.folder) / str(row)).touch(exist_ok=False)
                except FileExistsError:
                    continue
                raise EngineUnavailable("down, once")
        return batch


def counted(report: RunReport) -> Counter[str]:
    """Rows and late rows, whatever their order and that of their columns."""
    kept = report.committed.data.to_pylist() if report.committed.rows else []
    lost = [letter.row or {} for letter in report.dead_letters]
    return Counter(json.dumps(row, sort_keys=True, default=str) for row in [*kept, *lost])


def _runs_agree(flows: Flows, draw: Any, folder: Path) -> None:
    numbers = draw(st.lists(st.integers(0, 40), min_size=1, max_size=30))
    steps = draw_steps(draw)
    faults = tuple(draw(st.sets(st.sampled_from(numbers), max_size=2)))
    cuts = draw(st.tuples(*[st.integers(1, 4)] * 3))
    options = {"retries": 4, "retry_delay_s": 0.01}

    def pipeline(name: str) -> Pipeline:
        marks = folder / name
        marks.mkdir()
        given = [{"a": number, "k": _key({"a": number})} for number in numbers]
        from sage_prefect.kernel.source import CollectionSource

        made = Pipeline("equal").source(CollectionSource(given, rows_per_part=3))
        made = made.map(FailOnce(str(marks), faults))
        for step in steps:
            made = STEPS[step](made)
        return made.sink()

    def outcome(run: Callable[[], RunReport]) -> Counter[str] | str:
        try:
            report = run()
        except PipelineError as error:
            if "was set aside" not in str(error):
                raise
            return "nothing"  # all rows were late: nothing is published, on all three
        assert report.rows_read >= len(numbers)
        return counted(report)

    alone = outcome(lambda: pipeline("local").run(partitions=cuts[0], **options))
    on_dask = outcome(
        lambda: runner("dask").run(
            pipeline("dask"), cluster=flows.dask, partitions=cuts[1], **options
        )
    )
    on_prefect = outcome(
        lambda: flows.run(pipeline("prefect"), partitions=cuts[2], reuse="never", **options)
    )
    assert alone == on_dask == on_prefect, (steps, numbers, faults, cuts)


def test_random_pipelines_give_the_same_rows_on_all_runners(flows, tmp_path):
    counter = iter(range(10_000))

    @hypothesis.settings(max_examples=4, derandomize=True, phases=[hypothesis.Phase.generate])
    @hypothesis.given(st.data())
    def check(data: Any) -> None:
        folder = tmp_path / str(next(counter))
        folder.mkdir()
        _runs_agree(flows, data.draw, folder)

    check()


@pytest.mark.slow
def test_many_random_pipelines_give_the_same_rows_on_all_runners(flows, tmp_path):
    counter = iter(range(10_000))

    @hypothesis.settings(max_examples=60)
    @hypothesis.given(st.data())
    def check(data: Any) -> None:
        folder = tmp_path / str(next(counter))
        folder.mkdir()
        _runs_agree(flows, data.draw, folder)

    check()


def test_a_killed_exchange_resumes_on_dask(flows, tmp_path):
    from sage_prefect.platform.run_store import FileRunStore

    def sums() -> Pipeline:
        flaky = FailFirst(str(tmp_path), 1, "bad", only=12)
        keyed = Pipeline("resumed").source(source(12)).map(increment_a)
        return keyed.aggregate(by="a", n="count").map(flaky).sort("a").sink()

    store = FileRunStore(tmp_path / "log")
    with pytest.raises(OperatorError, match=r"'flaky' failed.*row is bad.*Declared at"):
        runner("dask").run(sums(), cluster=flows.dask, store=store)
    report = runner("dask").run(sums(), cluster=flows.dask, store=store)
    assert [row["a"] for row in report.committed.data.to_pylist()] == list(range(1, 13))
    assert report.reused_partitions >= 4  # those before the exchange, and some after it


@operator("increment-a", reads=("a",), adds=("a",))
def increment_a(row):
    return {"a": row["a"] + 1}
