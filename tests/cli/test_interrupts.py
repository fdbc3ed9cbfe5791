"""An interrupted command stops what it started, and nothing else."""

from __future__ import annotations

import fcntl
import os
import signal

import pytest

from sage_prefect.cli.interrupts import stopping_on_interrupt
from sage_prefect.common.paths import state_dir


class Supervisor:
    """Records what it is told; stands where the real client would be."""

    def __init__(self, names):
        self.names = names
        self.calls = []

    def list(self):
        return [type("State", (), {"name": name}) for name in self.names]

    def stop(self, *names):
        self.calls.append(("stop", names))

    def shutdown(self):
        self.calls.append(("shutdown",))


@pytest.fixture
def running(monkeypatch, sage_home):
    supervisor = Supervisor(["prefect", "gateway"])
    monkeypatch.setattr(
        "sage_prefect.platform.supervisor_client.SupervisorClient.connect",
        lambda start=True: supervisor,
    )
    return supervisor


def interrupt(names, number=signal.SIGINT):
    with pytest.raises(KeyboardInterrupt), stopping_on_interrupt() as started:  # noqa: PT012
        started.names += names
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 5)  # never reached: the signal raises


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_of_it(running, number):
    interrupt(["prefect", "gateway"], number)
    assert running.calls == [("shutdown",)]


def test_only_its_own(running):
    interrupt(["gateway"])
    assert running.calls == [("stop", ("gateway",))]


def test_nothing_started(running):
    interrupt([])
    assert running.calls == []


def test_another_command_uses_them(running):
    state_dir().mkdir(parents=True)
    with (state_dir() / "users.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        interrupt(["prefect", "gateway"])
    assert running.calls == []


def test_signal_handlers_are_put_back(running):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    interrupt([])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
