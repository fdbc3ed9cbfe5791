"""The script that measures deep queues runs; what it prints is a matter of the machine."""

from __future__ import annotations

import gc

import pytest

from sage_bench import queue_depth


@pytest.mark.parametrize("policy", ["fifo", "hybrid"])
def test_it_fills_works_and_empties(
    policy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    thresholds = gc.get_threshold()
    try:
        queue_depth.main(["--requests", "300", "--rounds", "120", "--policy", policy])
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    printed = capsys.readouterr().out
    assert f"policy {policy}, 300 queued requests" in printed
    for phase in ("arrival, full", "done, next dispatched", "failed, retried", "engine suspect"):
        assert phase in printed
