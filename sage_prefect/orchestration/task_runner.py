"""How Prefect tasks reach Dask workers: a DaskTaskRunner whose cost per task is that of Dask.

The stock runner spends 100 to 200 ms of CPU per task (docs/decisions/0005-task-runner.md): it
serialises the flow's context and all settings for each task, and each task builds them again on the
worker, together with two TLS contexts. Here the flow's context and the settings are serialised once
per flow run, and built once per worker process; a Prefect client is kept per worker thread.

This is the one module that touches semi-private names of Prefect and prefect-dask. It relies on:

* ``prefect.context``: ``serialize_context()`` and its keys, ``hydrated_context()`` leaving out what
  is empty, ``SettingsContext(**serialized)``, ``SyncClientContext`` found by ``get_client()``;
* ``prefect.task_engine``: ``run_task_async``; ``SyncTaskRunEngine`` driven as ``run_task_sync``
  does, its ``_wait_for_dependencies()`` before and ``begin_run()`` inside the tags' limits;
* ``prefect.utilities.engine.collect_task_run_inputs_sync``;
* ``prefect_dask.task_runners``: ``PrefectDaskFuture``, ``DaskTaskRunner._optimize_futures``,
  ``.client``, ``.duplicate()``.

tests/orchestration/test_task_runner_contract.py states that for each minor version of Prefect.
``runner="stock"`` (settings.pipelines.runner) does without all of it.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import hashlib
import pickle
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID, uuid4

import cloudpickle  # type: ignore[import-untyped]
import dask
import distributed
import prefect.context as prefect_context
from prefect import Flow, Task
from prefect._flow_run_suspension import raise_if_flow_run_suspension_requested
from prefect.client.orchestration import get_client
from prefect.task_engine import SyncTaskRunEngine, run_task_async
from prefect.utilities.engine import collect_task_run_inputs_sync
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from sage_prefect.common.errors import ClusterError
from sage_prefect.orchestration.services import dask_address

# Dask would try for 30 s to reach a scheduler that does not listen.
_CONNECT_LIMIT_S = 10

RunnerKind = Literal["sage", "stock"]

# What changes between two tasks of one flow run: shipped with each of them.
_FRESH = (
    "tags_context",
    "task_run_context",
    "asset_context",
    "deployment_id",
    "deployment_parameters",
)


def make_task_runner(kind: RunnerKind, address: str | None = None) -> Any:
    """A task runner for the Dask scheduler at ``address``.

    Args:
        kind: ``"sage"``, or ``"stock"`` for prefect-dask's own.
        address: None: that of the settings or of ``sage up``, looked up when a flow starts.
    """
    runner = SageTaskRunner if kind == "sage" else StockTaskRunner
    return runner(address=address, client_kwargs={"timeout": _CONNECT_LIMIT_S})


class StockTaskRunner(DaskTaskRunner):  # type: ignore[misc]
    """prefect-dask's runner; without an address it finds SAGE's cluster instead of making one."""

    address: str | None

    @property
    def client(self) -> Any:
        """The Dask client; connects at first use.

        Raises:
            ClusterError: there is no cluster, or it cannot be reached.
        """
        if self._client is None and self._cluster is None and not _on_a_worker():
            self.address = self.address or dask_address()
            if self.address is None:
                raise ClusterError(
                    "no Dask cluster runs.",
                    hint="Start one with `sage up`, give cluster='tcp://HOST:PORT', or "
                    "cluster='threads' to do without.",
                )
            try:
                return super().client
            except (OSError, ValueError) as error:
                raise ClusterError(
                    f"cannot reach the Dask scheduler at {self.address}: {error}",
                    hint="See `sage status`; `sage up` starts what does not run.",
                ) from error
        return super().client


def _on_a_worker() -> bool:
    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True


class SageTaskRunner(StockTaskRunner):
    """A ``DaskTaskRunner`` that ships contexts once per flow run instead of with each task.

    It also honours ``dask.annotate(priority=...)``, which the stock runner overrides with 0
    (PrefectHQ/prefect#21608), beside ``resources`` and ``workers``.

    Example:
        ```python
        @flow(task_runner=SageTaskRunner(address="tcp://127.0.0.1:8786"))
        async def main(): ...
        ```

    Args: those of ``prefect_dask.DaskTaskRunner``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shipments: dict[UUID | None, tuple[bytes, bytes, frozenset[str]]] = {}

    def submit(
        self,
        task: Any,
        parameters: dict[str, Any],
        wait_for: Iterable[Any] | None = None,
        dependencies: dict[str, set[Any]] | None = None,
    ) -> Any:
        """Submit ``task`` to the cluster; returns its future at once."""
        if not self._started:
            raise RuntimeError("The task runner must be started before submitting work.")
        parameters = self._optimize_futures(parameters)
        upstream = self._optimize_futures(wait_for) if wait_for else None
        inputs = {
            name: collect_task_run_inputs_sync(value, future_cls=distributed.Future)
            | (dependencies or {}).get(name, set())
            for name, value in parameters.items()
        }
        task_run_id = uuid4()
        annotations: Mapping[str, Any] = dask.get_annotations()
        future = distributed.Client.submit(
            self.client,
            run_shipped_task,
            task,
            parameters,
            upstream,
            # Bytes: Dask would search dictionaries for futures, item by item.
            cloudpickle.dumps((task_run_id, inputs, _fresh_context(task, task_run_id, inputs))),
            *self._shipment(),
            key=f"{_key_prefix(task)}-{task_run_id}",
            pure=False,
            priority=annotations.get("priority", 0),
            resources=annotations.get("resources"),
            workers=annotations.get("workers"),
        )
        future.task_run_id = task_run_id
        return PrefectDaskFuture(wrapped_future=future, task_run_id=task_run_id)

    def _shipment(self) -> tuple[bytes, bytes, frozenset[str]]:
        """Context of the flow run and the settings, each serialised once, and limited tags."""
        engine = prefect_context.EngineContext.get()
        run = engine.flow_run.id if engine and engine.flow_run else None
        if run not in self._shipments:
            context = prefect_context.serialize_context()
            if engine and engine.flow_run and engine.flow:
                # As JSON values: their classes may be defined where no worker can import them.
                context["flow_run_context"]["parameters"] = engine.flow_run.parameters
                context["flow_run_context"]["flow"] = self._shell(engine.flow)
            settings = cloudpickle.dumps(context["settings_context"])
            shared = {part: context[part] for part in context if part not in _FRESH}
            shared["settings_context"] = {}  # hydrated_context() leaves out what is empty
            self._shipments[run] = (cloudpickle.dumps(shared), settings, limited_tags())
        return self._shipments[run]

    def _shell(self, flow: Flow[..., Any]) -> Flow[..., Any]:
        # A task needs its flow's name and options, not its code: that may close over anything.
        shell = copy.copy(flow)
        functools.update_wrapper(shell, _flow_of_another_process)
        shell.fn = _flow_of_another_process
        runner = self.duplicate()
        runner.address = self.client.scheduler.address
        shell.task_runner = runner
        for hooks in ("completion", "failure", "cancellation", "crashed", "running"):
            setattr(shell, f"on_{hooks}_hooks", [])
        return shell


def limited_tags() -> frozenset[str]:
    """Tags with a concurrency limit on the Prefect server, as of now."""
    names: list[str] = []
    page = 200
    with get_client(sync_client=True) as client:
        while True:
            limits = client.read_global_concurrency_limits(limit=page, offset=len(names))
            names += [limit.name for limit in limits]
            if len(limits) < page:
                break
    return frozenset(name.removeprefix("tag:") for name in names if name.startswith("tag:"))


def _flow_of_another_process() -> None:
    raise RuntimeError("A flow cannot be called from inside a task on a Dask worker.")


def _fresh_context(
    task: Task[..., Any], task_run_id: UUID, inputs: dict[str, set[Any]]
) -> dict[str, Any]:
    """Those parts of the context that belong to this very task run."""
    tags = prefect_context.TagsContext.get()
    parent = prefect_context.TaskRunContext.get()
    deployment_id = prefect_context._deployment_id.get()
    return {
        "tags_context": tags.serialize() if tags else {},
        "task_run_context": parent.serialize() if parent else {},
        "asset_context": prefect_context.AssetContext.from_task_and_inputs(
            task=task, task_run_id=task_run_id, task_inputs=inputs, copy_to_child_ctx=True
        ).serialize(),
        "deployment_id": str(deployment_id) if deployment_id else None,
        "deployment_parameters": prefect_context._deployment_parameters.get(),
    }


def _key_prefix(task: Task[..., Any]) -> str:
    # The Dask dashboard groups tasks by what stands before the id.
    return re.sub(r"[^A-Za-z0-9_+.]+", "_", task.name) or "task"


# -- on the worker ------------------------------------------------------------------------


def run_shipped_task(
    task: Task[..., Any],
    parameters: dict[str, Any],
    wait_for: Any,
    own: bytes,
    flow_run: bytes,
    settings: bytes,
    limited: frozenset[str],
) -> Any:
    """Run a task that :class:`SageTaskRunner` sent; returns its final state."""
    task_run_id, dependencies, fresh = pickle.loads(own)
    built = _flow_contexts.get(flow_run), _settings_contexts.get(settings)
    arguments: dict[str, Any] = {
        "task": task,
        "parameters": parameters,
        "wait_for": wait_for,
        "context": {**built[0], **fresh},
    }
    # A context object can be entered once at a time, and several threads use these settings.
    with built[1].model_copy():
        if task.isasync:
            return asyncio.run(
                run_task_async(
                    **arguments,
                    task_run_id=task_run_id,
                    dependencies=dependencies,
                    return_type="state",
                )
            )
        with _kept_client(built[1]):
            return _TaskRun(**arguments, limited=limited).run(task_run_id, dependencies)


@dataclass
class _TaskRun(SyncTaskRunEngine[Any, Any]):
    """Prefect's engine, that asks the server for leave only for tags that have a limit.

    Prefect asks for every task that has tags: one HTTP request each, with a client of its own
    (28 % of a run's time were measured on a busy server).
    """

    limited: frozenset[str] = frozenset()
    tags_set_aside: list[str] = field(default_factory=list)

    def _wait_for_dependencies(self) -> None:
        super()._wait_for_dependencies()  # type: ignore[no-untyped-call]
        if self.task_run is not None:
            self.tags_set_aside = self.task_run.tags
            self.task_run.tags = [tag for tag in self.tags_set_aside if tag in self.limited]

    def begin_run(self) -> None:
        if self.task_run is not None:
            self.task_run.tags = self.tags_set_aside
        super().begin_run()

    def run(self, task_run_id: UUID, dependencies: dict[str, set[Any]]) -> Any:
        """As ``prefect.task_engine.run_task_sync``; returns the final state."""
        with self.start(task_run_id=task_run_id, dependencies=dependencies):
            while self.is_running():
                self.wait_until_ready()
                with (
                    self.asset_context(),
                    self.run_context(),
                    self.transaction_context() as transaction,
                ):
                    self.call_task_fn(transaction)
                raise_if_flow_run_suspension_requested()
        return self.state


class _Built:
    """What was made of the last few different shipments in this process."""

    def __init__(self, make: Callable[[Any], Any], keep: int = 8) -> None:
        self._make, self._keep = make, keep
        self._made: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shipment: bytes) -> Any:
        key = hashlib.blake2b(shipment, digest_size=16).digest()
        with self._lock:
            if key not in self._made:
                self._made[key] = self._make(pickle.loads(shipment))
            self._made.move_to_end(key)
            while len(self._made) > self._keep:
                self._made.popitem(last=False)
            return self._made[key]


_flow_contexts = _Built(dict)
# About 45 ms: more than 50 pydantic models.
_settings_contexts = _Built(lambda content: prefect_context.SettingsContext(**content))


class _ThreadClient(threading.local):
    """The Prefect client of this worker thread, and the settings that it was made for."""

    context: Any = None
    settings: weakref.ref[Any] | None = None


_client = _ThreadClient()


@contextmanager
def _kept_client(settings: Any) -> Iterator[None]:
    """Let Prefect find this thread's client instead of making two per task (21 ms each).

    ``settings`` are those that are active, and that the client is made from.
    """
    made_for = _client.settings() if _client.settings else None
    if made_for is not settings:
        if _client.context is not None:
            _client.context.client.__exit__(None, None, None)
        _client.context = prefect_context.SyncClientContext()
        _client.context.client.__enter__()
        _client.settings = weakref.ref(settings)
    variable = prefect_context.SyncClientContext.__var__
    token = variable.set(_client.context)
    try:
        yield
    finally:
        variable.reset(token)
