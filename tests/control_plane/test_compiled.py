"""Compiled and interpreted, the control plane decides the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sage_prefect.common.compiled import SWITCH, compiled_state

PACKAGE = "sage_prefect.control_plane"

# One run of a mixed load over three unequal engines, its actions line by line: more than fits in,
# prefixes, embedding calls, failures, a policy change.
SCRIPT = """
import random, sys
from sage_prefect.common.compiled import compiled_state
from sage_prefect.control_plane.event_json import to_json
from sage_prefect.control_plane.events import *
from sage_prefect.control_plane.manager import ControlPlaneManager

policy = sys.argv[1]
print(compiled_state("sage_prefect.control_plane").active)
rng = random.Random(7)
control = ControlPlaneManager(policy, seed=3)
inside, batches, now = [], [], 0.0

def feed(event):
    for action in control.handle(event, now):
        print(to_json(action).decode())
        if isinstance(action, Dispatch):
            inside.append((action.request_id, action.engine))
        elif isinstance(action, DispatchBatch):
            batches.append((action.batch_id, action.engine))

profile = EngineProfile(c0=0.03, a=6.5e-5, b=2.1e-4, g=1.6e-7, s0=0.004, alpha=2e-6)
for n, concurrency in enumerate((8, 16, 4)):
    known = None if n == 2 else profile
    feed(EngineAdded(EngineSpec(f"e{n}", ("m",), concurrency, profile=known, kv_tokens=60_000)))
    feed(EngineReport(f"e{n}", EngineState.READY))
feed(EngineAdded(EngineSpec("v", ("v",), 4, max_batch_tokens=4096)))
feed(EngineReport("v", EngineState.READY))
feed(BandsChanged((BandSpec(Band.INTERACTIVE, 1.0, 0.1, reject_share=0.3),)))
feed(TenantsChanged((TenantSpec("a", 2.0), TenantSpec("b", 1.0, max_running=3))))
for number in range(1500):
    now += rng.expovariate(40.0)
    tenant, band = rng.choice("abc"), rng.choice((Band.INTERACTIVE, Band.STANDARD, Band.BATCH))
    if number == 900:
        feed(PolicyChanged("fair" if policy == "hybrid" else "hybrid"))
    if rng.random() < 0.2:
        lengths = tuple(rng.randrange(1, 400) for _ in range(rng.randrange(1, 5)))
        feed(Arrival(RequestInfo(f"r{number}", "v", "embedding", tenant, band, inputs=lengths,
                                 input_keys=lengths, merge_key=1, prompt_tokens=sum(lengths))))
    else:
        prefix = tuple(range(rng.randrange(0, 6)))
        feed(Arrival(RequestInfo(f"r{number}", "m", "chat", tenant, band, True, prefix=prefix,
                                 prompt_tokens=rng.randrange(1, 3000), output_estimate=100)))
    while batches and rng.random() < 0.6:
        batch, engine = batches.pop(0)
        if rng.random() < 0.1:
            feed(BatchFailed(batch, engine, FailureCause.STATUS, True, True))
        else:
            feed(BatchDone(batch, 900))
    while len(inside) > 10:
        name, engine = inside.pop(rng.randrange(len(inside)))
        feed(FirstToken(name))
        feed(Progress(name, 5))
        if rng.random() < 0.05:
            feed(Failed(name, engine, FailureCause.CONNECT, True))
        else:
            feed(Done(name, rng.randrange(3000), rng.randrange(300), 0))
    if number % 10 == 0:
        feed(Timer())
print(control.queued, control.running)
"""


@pytest.mark.skipif(
    os.environ.get(SWITCH) == "0" or "changed" in compiled_state(PACKAGE).reason,
    reason="Python runs the sources as they are: " + compiled_state(PACKAGE).reason,
)
def test_the_build_is_used() -> None:
    assert compiled_state(PACKAGE).active, compiled_state(PACKAGE).reason


@pytest.mark.skipif(not compiled_state(PACKAGE).active, reason=compiled_state(PACKAGE).reason)
@pytest.mark.parametrize("policy", ["hybrid", "slo_aware", "prefix_aware", "power_of_two"])
def test_decisions_are_equal(policy: str) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, policy],
            env={**os.environ, SWITCH: switch, "PYTHONHASHSEED": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for switch in ("0", "1")
    ]
    interpreted, compiled = (run.communicate(timeout=120)[0].splitlines() for run in runs)
    assert all(run.returncode == 0 for run in runs)
    assert (interpreted[0], compiled[0]) == ("False", "True")
    assert len(compiled) > 1000
    assert compiled[1:] == interpreted[1:]
