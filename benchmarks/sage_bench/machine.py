"""The machine under a benchmark: what it is, and how busy it was with other things meanwhile."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# Instruction sets that decide how fast kernels of ours and of peers run.
RELEVANT_FLAGS = frozenset(
    (
        *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
        *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("avx512_fp16", "avx512_vpopcntdq"),
        *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"),
    )
)


def describe_hardware(disk: Path) -> dict[str, Any]:
    """CPU, memory, GPUs and the disk that holds ``disk``; what is not there is ``"none"``."""
    cpu = _cpu_information()
    frequency = psutil.cpu_freq()
    usage = shutil.disk_usage(disk)
    return {
        "cpu_model": cpu["model"],
        "cpu_flags": cpu["flags"],
        "cores_logical": psutil.cpu_count() or 1,
        "cores_physical": psutil.cpu_count(logical=False),
        "affinity": sorted(os.sched_getaffinity(0)),
        "mhz": round(frequency.current) if frequency else None,
        "ram_bytes": psutil.virtual_memory().total,
        "swap_bytes": psutil.swap_memory().total,
        "gpus": describe_gpus() or "none",
        "disk": {"filesystem": _filesystem(disk), "bytes": usage.total, "free_bytes": usage.free},
        "virtualised": "hypervisor" in cpu["all_flags"],
    }


def describe_gpus() -> list[dict[str, str]]:
    """NVIDIA GPUs by ``nvidia-smi``; empty where that tool is not there or finds none."""
    fields = ("name", "driver_version", "memory.total", "mig.mode.current")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (FileNotFoundError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ") for line in answer.stdout.strip().splitlines()]
    return [dict(zip(fields, row, strict=False)) for row in rows]


def _cpu_information() -> dict[str, Any]:
    entries: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            entries.setdefault(name.strip(), value.strip())
    except OSError:
        entries = {}
    flags = set((entries.get("flags") or entries.get("Features") or "").split())
    model = entries.get("model name") or platform.processor() or platform.machine()
    family = "/".join(entries[key] for key in ("cpu family", "model") if key in entries)
    return {
        "model": f"{model} (family/model {family})" if family else model,
        "flags": sorted(flags & RELEVANT_FLAGS),
        "all_flags": flags,
    }


def _filesystem(path: Path) -> str:
    mounts = [(Path(part.mountpoint), part.fstype) for part in psutil.disk_partitions(all=True)]
    above = [mount for mount in mounts if path.resolve().is_relative_to(mount[0])]
    return max(above, key=lambda mount: len(mount[0].parts))[1] if above else "unknown"


@dataclass(frozen=True)
class CpuTicks:
    """Seconds of all cores together since boot, by what they did (``/proc/stat``)."""

    busy_s: float
    idle_s: float
    steal_s: float

    @classmethod
    def now(cls) -> CpuTicks:
        """Read them."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        steal = getattr(times, "steal", 0.0)
        # guest time is part of user time already
        busy = times.user + times.system + times.nice
        busy += getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)
        return cls(busy, idle, steal)


def load_between(before: CpuTicks, after: CpuTicks, own_cpu_s: float) -> Mapping[str, float]:
    """How the cores were used between two readings, in percent of all cores.

    ``own`` is the benchmark with its systems, ``others`` every other process of this machine,
    ``steal`` what the hypervisor gave to other machines.
    """
    busy = after.busy_s - before.busy_s
    steal = after.steal_s - before.steal_s
    everything = busy + steal + after.idle_s - before.idle_s
    if everything <= 0:
        return {"own_percent": 0.0, "others_percent": 0.0, "steal_percent": 0.0}
    share = 100 / everything
    return {
        "own_percent": round(min(own_cpu_s, busy) * share, 2),
        "others_percent": round(max(busy - own_cpu_s, 0.0) * share, 2),
        "steal_percent": round(steal * share, 2),
    }
