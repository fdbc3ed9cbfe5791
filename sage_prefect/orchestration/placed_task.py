"""Prefect tasks with Dask placement: resources that a worker must offer, and a priority."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import dask
from prefect import Task


class PlacedTask(Task[..., Any]):
    """A Prefect task that any Dask task runner places by ``counters``.

    Prefect has no option for this on a task (PrefectHQ/prefect#13010); the placement is handed on
    as a Dask annotation around each submission. Other task runners ignore it.

    Args:
        fn: a module-level function: tasks travel to workers by reference.
        counters: Dask worker resources, such as ``{"GPU": 1}``.
        priority: the higher, the sooner among tasks that wait (the stock runner ignores it).
        options: those of ``prefect.task``.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        counters: Mapping[str, float] | None = None,
        priority: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(fn=fn, **options)
        self.counters = dict(counters or {})
        self.priority = priority

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """See ``prefect.Task.submit``."""
        with self._annotated():
            return super().submit(*args, **kwargs)

    def map(self, *args: Any, **kwargs: Any) -> Any:
        """See ``prefect.Task.map``."""
        with self._annotated():
            return super().map(*args, **kwargs)

    def with_options(self, **options: Any) -> PlacedTask:
        """See ``prefect.Task.with_options``; the placement is kept."""
        plain = super().with_options(**options)
        made = object.__new__(type(self))
        made.__dict__.update(plain.__dict__)
        made.counters, made.priority = dict(self.counters), self.priority
        return made

    def _annotated(self) -> AbstractContextManager[None]:
        wishes: dict[str, Any] = {"priority": self.priority}
        if self.counters:
            wishes["resources"] = dict(self.counters)
        annotated: AbstractContextManager[None] = dask.annotate(**wishes)
        return annotated
