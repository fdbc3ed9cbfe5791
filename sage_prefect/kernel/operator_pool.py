"""Operators that are set up, kept for the next partition: ``setup()`` once per worker.

An instance is lent to one thread at a time; two threads of a worker get two instances.
"""

from __future__ import annotations

import atexit
import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from sage_prefect.kernel.fingerprint import fingerprint
from sage_prefect.kernel.operator import Operator, OperatorContext

_Key = tuple[type[Operator], str]


class OperatorPool:
    """Lends operators that are set up.

    Args:
        idle: how many unused instances are kept; the least recently used is closed beyond that.
    """

    def __init__(self, idle: int = 16) -> None:
        self._idle_limit = idle
        self._idle: OrderedDict[_Key, list[Operator]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, operator: Operator, context: OperatorContext) -> Iterator[Operator]:
        """A set-up instance of ``operator``; taken back, or closed if its use failed."""
        if not _has_set_up(operator):
            # Nothing to keep. A function from another run may look alike and see other globals.
            with self._fresh(operator, context) as fresh:
                yield fresh
            return
        # The run's id is no part of the key: a model stays loaded from one run to the next.
        key = (
            type(operator),
            fingerprint(
                [operator.content_key(), context.band, context.tenant, context.deadline_ms]
            ),
        )
        instance = self._take(key)
        if instance is None:
            instance = copy.copy(operator)
            instance.context = context
            instance.setup()
        else:
            instance.context = context
        try:
            yield instance
        except BaseException:
            instance.close()
            raise
        self._give(key, instance)

    @contextmanager
    def _fresh(self, operator: Operator, context: OperatorContext) -> Iterator[Operator]:
        instance = copy.copy(operator)
        instance.context = context
        try:
            yield instance
        finally:
            instance.close()

    def close(self) -> None:
        """Close all idle instances."""
        with self._lock:
            idle = [instance for instances in self._idle.values() for instance in instances]
            self._idle.clear()
        for instance in idle:
            instance.close()

    def _take(self, key: _Key) -> Operator | None:
        with self._lock:
            instances = self._idle.get(key)
            if not instances:
                return None
            instance = instances.pop()
            if not instances:
                del self._idle[key]
            return instance

    def _give(self, key: _Key, instance: Operator) -> None:
        retired: list[Operator] = []
        with self._lock:
            self._idle.setdefault(key, []).append(instance)
            self._idle.move_to_end(key)
            while sum(len(instances) for instances in self._idle.values()) > self._idle_limit:
                oldest = next(iter(self._idle))
                retired.append(self._idle[oldest].pop(0))
                if not self._idle[oldest]:
                    del self._idle[oldest]
        for old in retired:
            old.close()


def _has_set_up(operator: Operator) -> bool:
    found: object = type(operator).setup
    return found is not Operator.setup


#: The pool of this process.
pool = OperatorPool()
atexit.register(pool.close)
