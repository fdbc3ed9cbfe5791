"""``manifest.json``: all that a reader needs to judge a result, or to make it again.

Every field is required. What does not apply is said in words (``"none"``, an empty list), so that
a missing field is always an omission, and :func:`validate` fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sage_prefect.common.errors import CorruptFileError

SCHEMA_VERSION = 1

BackendKind = Literal["real", "calibrated-sim", "mock"]
Status = Literal["running", "complete", "failed", "interrupted"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Disk(_Part):
    filesystem: str
    bytes: int
    free_bytes: int


class Hardware(_Part):
    """The machine; ``mhz`` and ``cores_physical`` are None where the kernel does not say."""

    cpu_model: str
    cpu_flags: list[str]
    cores_logical: int
    cores_physical: int | None
    affinity: list[int]
    mhz: int | None
    ram_bytes: int
    swap_bytes: int
    gpus: list[dict[str, str]] | Literal["none"]
    disk: Disk
    virtualised: bool


class Load(_Part):
    """Use of all cores during the run, in percent; the load average is that of its start."""

    own_percent: float
    others_percent: float
    steal_percent: float
    load_average_at_start: float


class Software(_Part):
    os: str
    kernel: str
    libc: str
    python: str
    implementation: str
    control_plane: str
    gateway: str
    """``compiled``, or why Python ran its sources."""
    packages_file: str
    packages_sha256: str
    key_packages: dict[str, str]


class Checkout(_Part):
    """Git state; ``dirty`` is None when the code is not a checkout."""

    commit: str
    dirty: bool | None
    changed_files: int = 0


class SystemEntry(_Part):
    """A measured system with its configuration as it takes it, and the hash of that."""

    case: str
    name: str
    role: Literal["subject", "peer", "noise"]
    version: str
    config: dict[str, Any]
    config_sha256: str


class ModelEntry(_Part):
    """A model that took part; hashes are SHA-256 of the files."""

    name: str
    package: str
    sha256: str
    quantisation: str
    tokenizer_sha256: str


class Workload(_Part):
    """What was asked of the systems.

    ``sizes`` describes the input's distribution (tokens, characters, dimensions...), ``arrival``
    how work arrives (closed loop, one at a time; Poisson at a rate; ...).
    """

    dataset: str
    dataset_sha256: str
    items: int
    sizes: dict[str, Any]
    arrival: str
    mix: str
    tenants: str


class Warmup(_Part):
    rounds: int
    excluded_from_summary: Literal[True] = True
    kept_in_raw_data: Literal[True] = True


class Manifest(_Part):
    """The whole file. ``ended_at``, ``duration_s`` and ``load`` are None only while running."""

    schema_version: Literal[1]
    uid: str
    exp: str
    number: str
    title: str
    status: Status
    claims: list[str]
    expectation: str
    git: Checkout
    sage_version: str
    command: list[str]
    options: dict[str, Any]
    seed: int
    started_at: datetime
    ended_at: datetime | None
    duration_s: float | None
    hardware: Hardware
    load: Load | None
    software: Software
    backend_kind: BackendKind
    systems: list[SystemEntry] = Field(min_length=1)
    models: list[ModelEntry]
    workload: Workload
    warmup: Warmup
    rounds: int
    order: str
    pause_s: float
    slo: dict[str, float]
    raw_files: list[str]


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, independent of the order of its keys."""
    encoded = orjson.dumps(config, option=orjson.OPT_SORT_KEYS, default=str)
    return hashlib.sha256(encoded).hexdigest()


def validate(content: Mapping[str, Any], where: str = "manifest") -> Manifest:
    """Check a manifest's content.

    Raises:
        CorruptFileError: names every missing, unknown or wrong field; a finished run needs
            ``ended_at``, ``duration_s`` and ``load`` too; another schema version is refused.
    """
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CorruptFileError(
            f"{where} has schema_version {version!r}; this SAGE reads {SCHEMA_VERSION}.",
            hint="Read it with the SAGE version that wrote it (its field sage_version).",
        )
    try:
        manifest = Manifest.model_validate(dict(content))
    except ValidationError as error:
        wrong = [
            f"{'.'.join(str(part) for part in item['loc'])} ({item['msg'].lower()})"
            for item in error.errors()
        ]
        raise CorruptFileError(
            f"{where} is incomplete or wrong: {'; '.join(wrong)}.",
            hint="A result without its full manifest cannot be judged; run the benchmark again.",
        ) from None
    if manifest.status != "running":
        missing = [
            name for name in ("ended_at", "duration_s", "load") if getattr(manifest, name) is None
        ]
        if missing:
            raise CorruptFileError(f"{where}: a finished run lacks {', '.join(missing)}.")
    return manifest
