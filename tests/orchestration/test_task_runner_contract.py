"""What task_runner.py relies on in Prefect and prefect-dask beyond their public interface.

One entry per minor version of Prefect that pyproject.toml admits. When this fails after an upgrade,
read the changed function, adapt task_runner.py, and add the version here; until then
``pipelines.runner: stock`` does without all of it.
"""

from __future__ import annotations

import inspect
import pickle

import cloudpickle
import distributed
import prefect
import prefect.context as prefect_context
import pytest
from prefect import flow, tags, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_engine import SyncTaskRunEngine, run_task_async, run_task_sync
from prefect.utilities.engine import collect_task_run_inputs_sync
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from sage_prefect.orchestration import task_runner
from sage_prefect.orchestration.task_runner import SageTaskRunner, make_task_runner

PROVED = {"3.8"}


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_this_minor_version_has_been_read():
    assert ".".join(prefect.__version__.split(".")[:2]) in PROVED


def test_context_has_these_parts_and_no_others():
    assert set(prefect_context.serialize_context()) == {
        "flow_run_context",
        "settings_context",
        *task_runner._FRESH,
    }


def test_engine_is_driven_as_prefect_does():
    """``_TaskRun.run`` repeats this function; only the return value is fixed to the state."""
    assert parameters(run_task_sync) == [
        "task",
        "task_run_id",
        "task_run",
        "parameters",
        "wait_for",
        "return_type",
        "dependencies",
        "context",
    ]
    assert parameters(run_task_async) == parameters(run_task_sync)
    body = inspect.getsource(run_task_sync).partition("with engine.start(")[2].split()
    ours = inspect.getsource(task_runner._TaskRun.run).partition("with self.start(")[2]
    ours = ours.replace("self.", "engine.").replace("transaction:", "txn:")
    ours = ours.replace("as transaction,", "as txn,").replace("(transaction)", "(txn)").split()
    assert ours[: ours.index("return")] == body[: body.index("return")]


def test_tags_are_looked_at_between_waiting_and_beginning():
    source = inspect.getsource(SyncTaskRunEngine.start)
    steps = [source.index(step) for step in ("_wait_for_dependencies", "tags", "begin_run")]
    assert steps == sorted(steps)
    assert source.count("tags") == 1


def test_runner_and_future_of_prefect_dask():
    for name in ("_optimize_futures", "client", "duplicate", "submit"):
        assert hasattr(DaskTaskRunner, name)
    assert parameters(DaskTaskRunner.submit)[1:] == [
        "task",
        "parameters",
        "wait_for",
        "dependencies",
    ]
    assert set(parameters(PrefectDaskFuture)) == {"wrapped_future", "task_run_id"}
    assert "future_cls" in parameters(collect_task_run_inputs_sync)
    assert {"key", "pure", "priority", "resources", "workers"} <= set(
        parameters(distributed.Client.submit)
    )


def test_settings_survive_the_journey():
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        sent = cloudpickle.dumps(prefect_context.serialize_context()["settings_context"])
    built = task_runner._Built(lambda content: prefect_context.SettingsContext(**content))
    settings = built.get(sent)
    assert built.get(sent) is settings  # built once
    first, second = settings.model_copy(), settings.model_copy()
    with first, second:  # as two threads would enter it
        assert PREFECT_API_URL.value() == "http://127.0.0.1:9/api"


def test_a_kept_client_is_the_one_that_prefect_finds():
    from prefect.client.orchestration import get_client

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        settings = prefect_context.SettingsContext.get()
        try:
            with task_runner._kept_client(settings):
                client = get_client(sync_client=True)
                assert isinstance(client, SyncPrefectClient)
                with prefect_context.SyncClientContext.get_or_create() as found:
                    assert found.client is client
            with task_runner._kept_client(settings):
                assert get_client(sync_client=True) is client
            assert prefect_context.SyncClientContext.get() is None
        finally:
            task_runner._client.context.client.__exit__(None, None, None)
            task_runner._client.context = task_runner._client.settings = None


def test_shell_of_a_flow_leaves_its_code_behind():
    unpicklable = open(__file__)  # noqa: SIM115 - a stand-in for what flows close over

    @flow(name="heavy", retries=3)
    def heavy(x: int = 1):
        return unpicklable

    runner = SageTaskRunner(address="tcp://127.0.0.1:1")
    runner._client = type("C", (), {"scheduler": type("S", (), {"address": "tcp://x:1"})})()
    shell = pickle.loads(cloudpickle.dumps(runner._shell(heavy)))
    unpicklable.close()
    assert (shell.name, shell.retries) == ("heavy", 3)
    assert shell.task_runner == SageTaskRunner(address="tcp://x:1")
    assert heavy.fn() is unpicklable


def test_tags_belong_to_each_submission():
    """A runner that kept the whole context lost the tags of `with tags(...)`."""

    @task
    def some():
        return None

    from uuid import uuid4

    with tags("outer"):
        inside = task_runner._fresh_context(some, uuid4(), {})
    outside = task_runner._fresh_context(some, uuid4(), {})
    assert inside["tags_context"]["current_tags"] == {"outer"}
    assert outside["tags_context"].get("current_tags", set()) == set()


@pytest.mark.parametrize("kind", ["sage", "stock"])
def test_runners_by_name(kind):
    runner = make_task_runner(kind, "tcp://127.0.0.1:1")
    assert type(runner.duplicate()) is type(runner)
    assert runner.duplicate().address == "tcp://127.0.0.1:1"
    assert isinstance(runner, SageTaskRunner) == (kind == "sage")
