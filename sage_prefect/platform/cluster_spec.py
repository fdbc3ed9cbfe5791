"""``cluster.yaml``: which Dask workers there are, in pools of equal ones. Pure parsing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from sage_prefect.common.errors import SettingsError, near_name

# A label is a counter that a worker has plenty of: it says where a task may run, not how many.
LABEL_SLOTS = 1_000_000.0

_TOP = ("pools",)
_POOL = ("count", "nthreads", "resources", "labels", "memory", "env")
_RESOURCES = ("cpu", "gpu")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    f"{unit}i": 1 << (10 * power) for power, unit in enumerate("kmgt", start=1)
}


@dataclass(frozen=True)
class WorkerPool:
    """Equal workers.

    Args:
        name: shows in worker names: ``cpu-0``.
        count: worker processes.
        nthreads: tasks that one of them runs at once, whatever their wishes.
        cpu, gpu: slots that each offers to tasks with such a wish.
        labels: what it can be asked for with ``Resources(labels=...)``.
        memory: bytes per worker; None: an equal share of the machine.
        env: environment of the worker processes.
    """

    name: str
    count: int = 1
    nthreads: int = 1
    cpu: float = 0.0
    gpu: float = 0.0
    labels: tuple[str, ...] = ()
    memory: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def counters(self, memory: int | None = None) -> dict[str, float]:
        """What each worker offers, under the names of ``Resources.counters()``.

        Args:
            memory: bytes per worker where the pool itself does not say.
        """
        offer: dict[str, float] = {}
        if self.cpu:
            offer["CPU"] = self.cpu
        if self.gpu:
            offer["GPU"] = self.gpu
        limit = self.memory if self.memory is not None else memory
        if limit:
            offer["MEMORY"] = float(limit)
        return offer | {f"label:{label}": LABEL_SLOTS for label in self.labels}


@dataclass(frozen=True)
class ClusterSpec:
    """All pools of a local cluster."""

    pools: tuple[WorkerPool, ...]

    @property
    def workers(self) -> int:
        """Worker processes in all."""
        return sum(pool.count for pool in self.pools)


def load_cluster_spec(file: Path | None = None) -> ClusterSpec:
    """Read ``cluster.yaml``; without a file the packaged default: one CPU, one GPU worker.

    Raises:
        SettingsError: names the file, the key, its value and what was expected.
    """
    if file is None:
        default = files("sage_prefect.platform") / "cluster.yaml"
        return parse_cluster_spec(default.read_text(encoding="utf-8"), "the default cluster.yaml")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read cluster file {file}: {error}.") from error
    return parse_cluster_spec(text, str(file))


def parse_cluster_spec(text: str, origin: str = "cluster.yaml") -> ClusterSpec:
    """Parse and check the text of a cluster file.

    Raises:
        SettingsError: names the origin, the key, its value and what was expected.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{origin} is not YAML: {error}.") from error
    top = _mapping(content, origin, "")
    _known(top, _TOP, origin, "")
    pools = _mapping(top.get("pools"), origin, "pools")
    if not pools:
        raise SettingsError(f"{origin} has no pools.", hint="Add one under `pools:`.")
    made = tuple(_pool(str(name), value, origin) for name, value in pools.items())
    if not any(pool.count for pool in made):
        raise SettingsError(f"{origin} has no workers.", hint="Give a pool `count: 1` or more.")
    return ClusterSpec(made)


def _pool(name: str, value: Any, origin: str) -> WorkerPool:
    at = f"pools.{name}"
    if not name or not all(char.isalnum() or char in "-_" for char in name):
        raise SettingsError(
            f"{origin}: pool name {name!r} is wrong.", hint="Use letters, digits, - and _."
        )
    keys = _mapping(value, origin, at)
    _known(keys, _POOL, origin, at)
    resources = _mapping(keys.get("resources"), origin, f"{at}.resources")
    resources = {str(key).lower(): amount for key, amount in resources.items()}
    _known(resources, _RESOURCES, origin, f"{at}.resources")
    return WorkerPool(
        name,
        count=_whole(keys.get("count", 1), 0, origin, f"{at}.count"),
        nthreads=_whole(keys.get("nthreads", 1), 1, origin, f"{at}.nthreads"),
        cpu=_slots(resources.get("cpu", 0), origin, f"{at}.resources.cpu"),
        gpu=_slots(resources.get("gpu", 0), origin, f"{at}.resources.gpu"),
        labels=_labels(keys.get("labels"), origin, f"{at}.labels"),
        memory=_memory(keys.get("memory"), origin, f"{at}.memory"),
        env=_env(keys.get("env"), origin, f"{at}.env"),
    )


def _mapping(value: Any, origin: str, at: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(origin, at or "the file", value, "a mapping of `key: value` lines")
    return value


def _known(keys: Mapping[Any, Any], known: tuple[str, ...], origin: str, at: str) -> None:
    for key in keys:
        if key not in known:
            raise SettingsError(
                f"{origin}: unknown key {f'{at}.{key}'.lstrip('.')!r}.",
                hint=f"{near_name(str(key), known)}Known here: {', '.join(known)}.",
            )


def _whole(value: Any, least: int, origin: str, at: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _wrong(origin, at, value, f"a whole number, {least} or more")
    return value


def _slots(value: Any, origin: str, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise _wrong(origin, at, value, "a number of slots, 0 or more")
    return float(value)


def _labels(value: Any, origin: str, at: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _wrong(origin, at, value, "a list of words")
    return tuple(value)


def _memory(value: Any, origin: str, at: str) -> int | None:
    if value is None or value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    text = str(value).strip().lower().removesuffix("b")
    number = text.rstrip("kmgti")
    unit = text[len(number) :].strip()
    try:
        size = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise _wrong(origin, at, value, 'bytes, a text such as "4GiB", or "auto"')
    return size


def _env(value: Any, origin: str, at: str) -> dict[str, str]:
    found = _mapping(value, origin, at)
    for key, item in found.items():
        if isinstance(item, (dict, list)) or item is None:
            raise _wrong(origin, f"{at}.{key}", item, "a text")
    return {str(key): str(item) for key, item in found.items()}


def _wrong(origin: str, at: str, value: Any, expected: str) -> SettingsError:
    return SettingsError(f"{origin}: {at} is {value!r}, not {expected}.")
