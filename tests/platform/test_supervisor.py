"""The supervisor with real child processes: starts, faults, races, stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from sage_prefect.common import endpoints
from sage_prefect.common.errors import PortInUseError, ServiceError
from sage_prefect.common.paths import state_dir
from sage_prefect.common.ports import SagePorts
from sage_prefect.platform import registry
from sage_prefect.platform.processes import identify, members
from sage_prefect.platform.service import (
    PortClaim,
    Probe,
    RestartPolicy,
    ServiceSpec,
)
from sage_prefect.platform.supervisor_client import (
    SupervisorClient,
    SupervisorNotRunning,
    recorded_states,
)

Make = Callable[..., ServiceSpec]
Eventually = Callable[..., None]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_start_publishes_and_stop_leaves_nothing(client: SupervisorClient, web: Make) -> None:
    news: list[str] = []
    state = client.start(web(), on_progress=news.append)
    assert state.status == "ready"
    assert state.url is not None
    assert endpoints.lookup("web") == state.url
    with urllib.request.urlopen(state.url) as answer:
        assert answer.status == 200
    assert any("started" in line for line in news)
    assert any("ready" in line for line in news)
    (stopped,) = client.stop("web")
    assert stopped.status == "stopped"
    assert endpoints.lookup("web") is None
    assert client.list() == []
    assert members(str(state_dir())) == []


def test_equal_spec_returns_the_running_one(client: SupervisorClient, web: Make) -> None:
    assert client.start(web()).pid == client.start(web()).pid
    with pytest.raises(ServiceError, match="other settings"):
        client.start(web(env={"X": "1"}))
    first = client.get("web")
    replaced = client.start(web(env={"X": "1"}), replace=True)
    assert first is not None
    assert replaced.pid != first.pid


def test_crash_at_start_shows_the_log(client: SupervisorClient, web: Make) -> None:
    spec = web(command=python("print('no such model'); raise SystemExit(3)"))
    with pytest.raises(ServiceError) as caught:
        client.start(spec)
    assert "exit status 3" in caught.value.message
    assert "no such model" in caught.value.message
    assert "web.log" in (caught.value.hint or "")
    state = client.get("web")
    assert state is not None
    assert state.status == "failed"
    # A failed one gives way to the next start.
    assert client.start(web()).status == "ready"


def test_unknown_program(client: SupervisorClient, web: Make) -> None:
    with pytest.raises(ServiceError, match=r"cannot run '/no/such/program'"):
        client.start(web(command=("/no/such/program",)))


def test_never_ready_ends_with_the_log_tail(client: SupervisorClient, web: Make) -> None:
    code = "import time; print('still loading', flush=True); time.sleep(600)"
    with pytest.raises(ServiceError) as caught:
        client.start(web(command=python(code), start_timeout_s=0.5))
    assert "not ready within 0.5 s" in caught.value.message
    assert "still loading" in caught.value.message
    assert members(str(state_dir())) == []


def test_killed_child_is_restarted_on_its_port(
    client: SupervisorClient, web: Make, eventually: Eventually
) -> None:
    before = client.start(web())
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)

    def back() -> bool:
        now = client.get("web")
        return now is not None and now.status == "ready" and now.pid != before.pid

    eventually(back)
    after = client.get("web")
    assert after is not None
    assert after.ports == before.ports
    assert after.restarts == 1
    assert endpoints.lookup("web") == after.url


def test_crash_loop_is_given_up(
    client: SupervisorClient, tmp_path: Path, eventually: Eventually
) -> None:
    marker = tmp_path / "up"
    code = f"open({str(marker)!r}, 'w').close(); import time; time.sleep(0.2); raise SystemExit(7)"
    spec = ServiceSpec(
        name="looper",
        command=python(code),
        ready=Probe(kind="file", target=str(marker)),
        probe_period_s=0.02,
        live_period_s=0.05,
        restart=RestartPolicy(limit=2, first_delay_s=0.02),
    )
    client.start(spec)

    def given_up() -> bool:
        state = client.get("looper")
        return state is not None and state.status == "failed"

    eventually(given_up)
    state = client.get("looper")
    assert state is not None
    assert state.restarts == 2
    assert "given up after 2 restarts" in state.detail
    assert "exit status 7" in state.detail


def test_hung_child_is_replaced(
    client: SupervisorClient, web: Make, eventually: Eventually
) -> None:
    probe = Probe(kind="http", target="http://127.0.0.1:{port}/", timeout_s=0.3)
    before = client.start(web(ready=probe, live_failures=2, stop_timeout_s=0.3))
    assert before.pid is not None
    os.kill(before.pid, signal.SIGSTOP)

    def replaced() -> bool:
        now = client.get("web")
        return now is not None and now.status == "ready" and now.pid != before.pid

    eventually(replaced)
    assert identify(before.pid) is None


def test_stop_kills_what_ignores_sigterm_and_runs_elsewhere(
    client: SupervisorClient, eventually: Eventually
) -> None:
    # A grandchild in a session of its own, and both deaf to SIGTERM.
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"subprocess.Popen([sys.executable, '-c', {deaf!r}], start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    client.start(ServiceSpec(name="deaf", command=python(code), stop_timeout_s=0.3))
    eventually(lambda: len(members(str(state_dir()), "deaf")) == 2)
    client.stop("deaf")
    assert members(str(state_dir())) == []


def test_drain_holds_sigterm_back(client: SupervisorClient, tmp_path: Path) -> None:
    gate = tmp_path / "drained"
    code = (
        "import os, signal, sys, time\n"
        f"gate = {str(gate)!r}\n"
        "def bye(*_):\n"
        "    print('drained first:', os.path.exists(gate), flush=True)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, bye)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    log = state_dir() / "logs" / "slow.log"
    spec = ServiceSpec(
        name="slow",
        command=python(code),
        ready=Probe(kind="file", target=str(log)),
        drain=Probe(kind="file", target=str(gate)),
        drain_timeout_s=30.0,
    )
    client.start(spec)
    stopping = threading.Thread(target=client.stop, args=("slow",))
    stopping.start()
    try:
        while (state := client.get("slow")) is None or state.detail != "draining":
            pass
        gate.touch()
    finally:
        stopping.join(30)
    assert "drained first: True" in log.read_text()


def test_default_port_taken_takes_the_next(
    client: SupervisorClient, web: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SagePorts.BENCH_API.variable, raising=False)
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", int(SagePorts.BENCH_API)))
        except OSError:
            pytest.skip("somebody else holds the port; nothing to prove")
        holder.listen()
        state = client.start(web(ports=(PortClaim.of(SagePorts.BENCH_API),)))
        assert state.ports["http"] > SagePorts.BENCH_API
        assert registry.read_registry().services["web"].state.ports == state.ports


def test_explicit_port_taken_is_an_error(client: SupervisorClient, web: Make) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        for claim in (PortClaim.of(SagePorts.LLM, port), PortClaim(explicit=port)):
            with pytest.raises(PortInUseError, match=str(port)):
                client.start(web(ports=(claim,)))
    assert client.list() == []


def test_services_wait_for_those_they_need(
    client: SupervisorClient, web: Make, eventually: Eventually
) -> None:
    user = web(
        "user",
        after=("base",),
        env={"BASE": "{endpoint.base}"},
        command=python(
            "import os; print(os.environ['BASE'], flush=True); import time; time.sleep(600)"
        ),
        ports=(),
        ready=None,
    )
    states = client.start_many([user, web("base")])
    assert [state.status for state in states] == ["ready", "ready"]
    assert states[1].url is not None

    def printed() -> bool:
        return states[1].url in client.logs("user")

    eventually(printed)


def test_a_need_that_fails_fails_its_user(client: SupervisorClient, web: Make) -> None:
    broken = web("base", command=python("raise SystemExit(1)"))
    with pytest.raises(ServiceError, match=r"it needs 'base', which is failed"):
        client.start_many([web("user", after=("base",)), broken])


def test_needs_are_checked_before_anything_starts(client: SupervisorClient, web: Make) -> None:
    with pytest.raises(ServiceError, match="needs 'ghost', which does not run"):
        client.start(web(after=("ghost",)))
    with pytest.raises(ServiceError, match="in a circle"):
        client.start_many([web("a", after=("b",)), web("b", after=("a",))])
    assert client.list() == []


def test_unknown_names(client: SupervisorClient) -> None:
    with pytest.raises(ServiceError, match="no service 'ghost'"):
        client.stop("ghost")
    assert client.get("ghost") is None


def test_two_clients_race(home: Path, web: Make) -> None:
    spec, found = web(), []

    def start() -> None:
        client = SupervisorClient.connect()
        found.append((client.pid, client.start(spec).pid))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    try:
        assert len(found) == 4
        assert len(set(found)) == 1
    finally:
        SupervisorClient.connect(start=False).shutdown()
    assert members(str(state_dir())) == []


def test_killed_supervisor_takes_its_children_along(
    own_client: SupervisorClient, web: Make, eventually: Eventually
) -> None:
    state = own_client.start(web())
    assert state.pid is not None
    os.kill(own_client.pid, signal.SIGKILL)
    eventually(lambda: identify(state.pid or 0) is None)
    with pytest.raises(SupervisorNotRunning):
        own_client.list()
    assert [(s.name, s.status, s.pid) for s in recorded_states()] == [("web", "stopped", None)]

    again = SupervisorClient.connect()
    (lost,) = again.list()
    assert (lost.status, lost.pid) == ("stopped", None)
    assert "ended without stopping it" in lost.detail
    assert endpoints.lookup("web") is None
    (restored,) = again.restore()
    assert restored.status == "ready"


def test_next_supervisor_ends_survivors_only(
    own_client: SupervisorClient, eventually: Eventually
) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    own_client.start(ServiceSpec(name="deaf", command=python(deaf)))
    foreign = subprocess.Popen(python("import time; time.sleep(600)"))
    try:
        state = own_client.get("deaf")
        assert state is not None
        eventually(lambda: _ignores_sigterm(state.pid or 0))
        os.kill(own_client.pid, signal.SIGKILL)
        eventually(lambda: identify(own_client.pid) is None)
        (survivor,) = members(str(state_dir()))
        # The registry now claims the foreign process too, under a start time that is not its own.
        records = registry.read_registry().services
        records["deaf"].process = (foreign.pid, 1)
        me = identify(os.getpid())
        assert me is not None
        registry.write_registry(records, me)
        SupervisorClient.connect()
        assert identify(survivor.pid) is None
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def _ignores_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask.split()[1], 16) & (1 << (signal.SIGTERM - 1)))


def test_sigterm_to_the_supervisor_stops_all(
    own_client: SupervisorClient, web: Make, eventually: Eventually
) -> None:
    own_client.start(web())
    os.kill(own_client.pid, signal.SIGTERM)
    eventually(lambda: identify(own_client.pid) is None)
    assert members(str(state_dir())) == []
    assert registry.read_registry().services == {}


def test_supervisor_leaves_when_idle(home: Path) -> None:
    command = [sys.executable, "-m", "sage_prefect.platform.supervisor", "--idle-exit", "0.2"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert b"idle" in done.stderr


def test_second_supervisor_steps_back(client: SupervisorClient) -> None:
    command = [sys.executable, "-m", "sage_prefect.platform.supervisor"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert b"another supervisor runs" in done.stderr


def test_connect_without_starting(home: Path) -> None:
    with pytest.raises(SupervisorNotRunning, match="no supervisor runs"):
        SupervisorClient.connect(start=False)


def test_damaged_registry_is_a_clear_error(home: Path) -> None:
    state_dir().mkdir(parents=True)
    registry.registry_file().write_text("{ this is not json")
    with pytest.raises(ServiceError, match="is damaged"):
        SupervisorClient.connect()


def test_unusable_state_directory(home: Path) -> None:
    home.write_text("a file, not a directory")
    with pytest.raises(ServiceError, match="cannot use the state directory"):
        SupervisorClient.connect()


def test_markers_do_not_reach_the_supervisor_itself(
    home: Path, web: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A service (a Prefect worker, say) may be the one that starts the next supervisor.
    monkeypatch.setenv("SAGE_SUPERVISOR", str(state_dir()))
    monkeypatch.setenv("SAGE_SERVICE", "worker")
    client = SupervisorClient.connect()
    try:
        environment = Path(f"/proc/{client.pid}/environ").read_bytes()
        assert b"SAGE_SUPERVISOR" not in environment
        assert client.start(web()).status == "ready"
    finally:
        client.shutdown()


def test_bad_request_is_answered(client: SupervisorClient) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(registry.socket_path()))
        connection.sendall(b'{"op": "dance"}\n')
        assert b"does not know the operation 'dance'" in connection.recv(4096)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(registry.socket_path()))
        connection.sendall(b"garbage\n")
        assert b"bad request" in connection.recv(4096)
    assert client.list() == []


def test_control_socket_is_private(client: SupervisorClient) -> None:
    assert registry.socket_path().stat().st_mode & 0o077 == 0
    assert registry.registry_file().stat().st_mode & 0o077 == 0


def test_an_answer_from_somebody_else_is_not_readiness(
    client: SupervisorClient, web: Make, tmp_path: Path
) -> None:
    """Another stack binds our port before our slow starter does: take the next port instead."""
    slow = (
        "import http.server, pathlib, sys, time\n"
        "port, gate = int(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "while not gate.exists():\n"
        "    time.sleep(0.01)\n"
        "try:\n"
        "    handler = http.server.SimpleHTTPRequestHandler\n"
        "    http.server.HTTPServer(('127.0.0.1', port), handler).serve_forever()\n"
        "except OSError:\n"
        "    time.sleep(600)\n"  # a server that hangs instead of ending
    )
    gate = tmp_path / "gate"
    spec = web(command=(*python(slow), "{port}", str(gate)), stop_timeout_s=0.3)
    client.start(spec, wait=False)
    port = next(iter(_ports(client)))
    # What the test binds without listening cannot be connected to; an HTTP server can.
    foreign = subprocess.Popen(
        (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while _ports(client) == {port}:
            pass
        gate.touch()
        state = client.start(spec)
        assert state.status == "ready"
        assert state.ports["http"] != port
        assert state.restarts == 0
    finally:
        foreign.kill()
        foreign.wait()


def _ports(client: SupervisorClient) -> set[int]:
    state = client.get("web")
    assert state is not None
    return set(state.ports.values())


def test_two_stacks_do_not_choose_the_same_port(
    client: SupervisorClient, web: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(SagePorts.BENCH_API.variable, raising=False)
    # Neither listens: only the promise keeps them apart.
    spec = web(
        ports=(PortClaim.of(SagePorts.BENCH_API),),
        command=python("import time; time.sleep(600)"),
        ready=None,
    )
    first = client.start(spec)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("SAGE_HOME", str(tmp_path / "other"))
        other = SupervisorClient.connect()
        try:
            second = other.start(spec)
        finally:
            other.shutdown()
    assert first.ports["http"] != second.ports["http"]
