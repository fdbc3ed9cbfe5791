"""nvidia-smi's output and the ledger of promised GPU memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sage_prefect.common.errors import ServiceError
from sage_prefect.platform.gpus import Gpu, GpuLedger, parse_nvidia_smi
from sage_prefect.platform.service import GpuClaim

TEXT = """\
0, GPU-1, NVIDIA H200, 143771, 4, 575.57.08, 9.0
1, GPU-2, NVIDIA GB10, [N/A], [N/A], 580.95.05, 12.1
No devices were found
"""


def gpu(index: int, total: int) -> Gpu:
    return Gpu(index, f"GPU-{index}", "test", total, 0, "1", "9.0")


def test_parse() -> None:
    first, second = parse_nvidia_smi(TEXT)
    assert first == Gpu(0, "GPU-1", "NVIDIA H200", 143771, 4, "575.57.08", "9.0")
    assert (second.index, second.memory_total_mib) == (1, 0)
    assert parse_nvidia_smi("") == []


@given(st.text())
def test_parse_survives_anything(text: str) -> None:
    parse_nvidia_smi(text)


def test_the_emptiest_device_is_chosen() -> None:
    ledger = GpuLedger([gpu(0, 10_000), gpu(1, 20_000)], reserve_mib=0)
    assert ledger.claim("a", [GpuClaim(memory_mib=15_000)]) == (1,)
    assert ledger.claim("b", [GpuClaim(memory_mib=6_000)]) == (0,)
    with pytest.raises(ServiceError, match=r"0: 4000 MiB free, 1: 5000 MiB free"):
        ledger.claim("c", [GpuClaim(memory_mib=6_000)])
    ledger.release("b")
    assert ledger.claim("c", [GpuClaim(memory_mib=6_000)]) == (0,)


def test_two_claims_of_one_service_take_two_devices() -> None:
    ledger = GpuLedger([gpu(0, 10_000), gpu(1, 10_000)], reserve_mib=0)
    assert set(ledger.claim("a", [GpuClaim(memory_mib=1), GpuClaim(memory_mib=1)])) == {0, 1}


def test_a_failed_claim_keeps_the_old_one() -> None:
    ledger = GpuLedger([gpu(0, 10_000)], reserve_mib=0)
    ledger.claim("a", [GpuClaim(memory_mib=5_000)])
    with pytest.raises(ServiceError, match="needs 11000 MiB on GPU 0"):
        ledger.claim("a", [GpuClaim(memory_mib=11_000, device=0)])
    assert ledger.promised() == {"a": {0: 5_000}}


def test_no_gpu() -> None:
    with pytest.raises(ServiceError, match="there is no GPU"):
        GpuLedger([]).claim("a", [GpuClaim(memory_mib=1)])


class LedgerMachine(RuleBasedStateMachine):
    """Whatever is claimed and released, no device is promised beyond its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = GpuLedger([gpu(0, 1_000), gpu(1, 3_000)], reserve_mib=100)

    @rule(
        name=st.sampled_from("abcd"),
        sizes=st.lists(st.integers(1, 3_000), min_size=1, max_size=2),
        device=st.sampled_from([None, 0, 1, 2]),
    )
    def claim(self, name: str, sizes: list[int], device: int | None) -> None:
        before = self.ledger.promised()
        try:
            self.ledger.claim(name, [GpuClaim(memory_mib=s, device=device) for s in sizes])
        except ServiceError:
            assert self.ledger.promised() == before

    @rule(name=st.sampled_from("abcd"))
    def release(self, name: str) -> None:
        self.ledger.release(name)

    @invariant()
    def never_over(self) -> None:
        for device, total in ((0, 1_000), (1, 3_000)):
            used = sum(claims.get(device, 0) for claims in self.ledger.promised().values())
            assert used <= total - 100


TestLedger = LedgerMachine.TestCase
