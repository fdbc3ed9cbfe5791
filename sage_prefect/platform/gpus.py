"""GPUs of this machine, as nvidia-smi tells, and a ledger of the memory promised on them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sage_prefect.common.errors import ServiceError
from sage_prefect.platform.service import GpuClaim

_FIELDS = "index,uuid,name,memory.total,memory.used,driver_version,compute_cap"


@dataclass(frozen=True)
class Gpu:
    """One device. Memory in MiB; ``compute_capability`` such as ``"9.0"``."""

    index: int
    uuid: str
    name: str
    memory_total_mib: int
    memory_used_mib: int
    driver: str
    compute_capability: str


def list_gpus() -> list[Gpu]:
    """The GPUs of this machine; empty without nvidia-smi or when its driver does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return []
    return parse_nvidia_smi(done.stdout) if done.returncode == 0 else []


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """Parse ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits``.

    Fields that a device does not have read ``[N/A]`` (memory of unified-memory devices, for one)
    and count as 0.
    """
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 7 or not cells[0].isdigit():
            continue
        index, uuid, name, total, used, driver, capability = cells
        gpus.append(Gpu(int(index), uuid, name, _number(total), _number(used), driver, capability))
    return gpus


def _number(cell: str) -> int:
    return int(cell) if cell.isdigit() else 0


@dataclass
class GpuLedger:
    """Which service was promised how much memory on which GPU.

    Capacity is each device's total less ``reserve_mib`` (contexts, display). What other programs
    use now is not subtracted: a claim is a promise for the service's life, their use is not.
    """

    gpus: Sequence[Gpu]
    reserve_mib: int = 512
    _claims: dict[str, dict[int, int]] = field(default_factory=dict)

    def free_mib(self, index: int) -> int:
        """Memory of a device that nobody was promised."""
        total = next((gpu.memory_total_mib for gpu in self.gpus if gpu.index == index), 0)
        promised = sum(claims.get(index, 0) for claims in self._claims.values())
        return max(0, total - self.reserve_mib - promised)

    def claim(self, service: str, claims: Sequence[GpuClaim]) -> tuple[int, ...]:
        """Promise memory to a service; replaces what it held. Returns the devices, in order.

        A claim without a device gets the one with the most free memory that this service does
        not use yet.

        Raises:
            ServiceError: no such device, or not enough memory left; nothing is promised then.
        """
        before = self._claims.pop(service, None)
        granted: dict[int, int] = {}
        order = []
        try:
            for claim in claims:
                index = self._choose(service, claim, granted)
                granted[index] = granted.get(index, 0) + claim.memory_mib
                order.append(index)
        except ServiceError:
            if before is not None:
                self._claims[service] = before
            raise
        if granted:
            self._claims[service] = granted
        return tuple(order)

    def release(self, service: str) -> None:
        """Take back what a service was promised; unknown names are fine."""
        self._claims.pop(service, None)

    def promised(self) -> Mapping[str, Mapping[int, int]]:
        """Service -> device -> MiB."""
        return {name: dict(claims) for name, claims in self._claims.items()}

    def _choose(self, service: str, claim: GpuClaim, granted: Mapping[int, int]) -> int:
        def left(index: int) -> int:
            return self.free_mib(index) - granted.get(index, 0)

        indices = [gpu.index for gpu in self.gpus]
        candidates = [
            index
            for index in indices
            if (index == claim.device) or (claim.device is None and index not in granted)
        ]
        best = max(candidates, key=left, default=None)
        if best is not None and left(best) >= claim.memory_mib:
            return best
        wanted = f"GPU {claim.device}" if claim.device is not None else "a GPU"
        there = ", ".join(f"{index}: {left(index)} MiB free" for index in indices) or "no GPU"
        raise ServiceError(
            f"service {service!r} needs {claim.memory_mib} MiB on {wanted}; there is {there}.",
            hint="Stop another engine (`sage llm list`), or lower its GPU memory.",
        )
