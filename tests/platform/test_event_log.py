from __future__ import annotations

import math
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sage_prefect.common.errors import CorruptFileError, SettingsError
from sage_prefect.control_plane.events import (
    Action,
    Arrival,
    Band,
    BandsChanged,
    BandSpec,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineGauges,
    EngineProfile,
    EngineReport,
    EngineSpec,
    EngineState,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Limits,
    PolicyChanged,
    Progress,
    Reject,
    RequestInfo,
    SetTimer,
    TenantsChanged,
    TenantSpec,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES
from sage_prefect.platform.event_log import (
    LEAST_MAX_BYTES,
    EventLogWriter,
    LogStep,
    read_log,
    replay,
)

LIMITS = Limits(max_queued_requests=40, queue_timeout_s=3.0, max_retries=1)
PROFILE = EngineProfile(0.01, 5e-5, 2e-4, 1e-7)


def traffic(seed: int, steps: int) -> Iterator[tuple[Event, float]]:
    """A crowded, faulty world; answers nothing, so that it is the same for every manager."""
    rng = Random(seed)
    for e in range(4):
        yield (
            EngineAdded(EngineSpec(f"e{e}", ("m", "n"), 4, profile=PROFILE, kv_tokens=50_000)),
            0.0,
        )
    yield BandsChanged((BandSpec(Band.INTERACTIVE, 1.0, 0.1, reject_share=0.5),)), 0.0
    yield TenantsChanged(tuple(TenantSpec(f"t{t}", 1.0 + t) for t in range(5))), 0.0
    now, made = 0.0, 0
    prefixes = [tuple(rng.getrandbits(64) for _ in range(8)) for _ in range(3)]
    for _ in range(steps):
        now += rng.expovariate(40.0) * (-1 if rng.random() < 0.01 else 1)
        name, engine = f"r{max(0, made - rng.randrange(1, 30))}", f"e{rng.randrange(4)}"
        kind = rng.random()
        event: Event
        if kind < 0.4:
            info = RequestInfo(
                f"r{made}",
                rng.choice(("m", "n")),
                tenant=f"t{rng.randrange(5)}",
                band=Band(rng.randrange(4)),
                stream=True,
                prompt_tokens=rng.randrange(4000),
                deadline=now + 2 if rng.random() < 0.2 else None,
                session=f"s{rng.randrange(9)}",
                prefix=rng.choice(prefixes),
            )
            event, made = Arrival(info), made + 1
        elif kind < 0.6:
            event = FirstToken(name)
        elif kind < 0.65:
            event = Progress(name, 5)
        elif kind < 0.85:
            event = Done(name, rng.randrange(4000), rng.randrange(400), rng.randrange(500))
        elif kind < 0.9:
            event = Failed(name, engine, FailureCause.RESET, retryable=True)
        elif kind < 0.93:
            event = Cancel(name)
        elif kind < 0.96:
            gauges = EngineGauges(1.0, 0.0, rng.choice((0.5, math.nan, math.inf)))
            event = EngineReport(engine, rng.choice(list(EngineState)), "", gauges)
        else:
            event = Timer()
        yield event, now


def record(path: Path, policy: str, steps: int = 1500, **options: Any) -> EventLogWriter:
    manager = ControlPlaneManager(policy, LIMITS, seed=7)
    with EventLogWriter(path, settings={"policy": policy, "seed": 7}, **options) as writer:
        for event, now in traffic(3, steps):
            writer.record(event, now, manager.handle(event, now))
    return writer


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """As on a full disk: the system refuses to write more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_replay_decides_the_same(tmp_path: Path, policy: str) -> None:
    writer = record(tmp_path / "log", policy)
    log = read_log(tmp_path / "log")
    assert log.header.settings == {"policy": policy, "seed": 7}
    seen: set[type] = {type(action) for step in log for action in step.actions}
    assert {Dispatch, Reject, SetTimer} <= seen
    replayed = replay(log, lambda: ControlPlaneManager(policy, LIMITS, seed=7))
    assert replayed.difference is None, str(replayed.difference)
    assert replayed.steps == writer.steps
    assert not log.torn


def test_another_process_decides_the_same(tmp_path: Path) -> None:
    """Hashes of texts differ from process to process; no decision may depend on them."""
    for policy in POLICIES:
        record(tmp_path / policy, policy)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from sage_prefect.platform.event_log import read_log, replay\n"
        "from sage_prefect.control_plane.events import Limits\n"
        "from sage_prefect.control_plane.manager import ControlPlaneManager\n"
        f"limits = {LIMITS!r}\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    make = lambda: ControlPlaneManager(path.name, limits, seed=7)\n"
        "    print(path.name, replay(read_log(path), make).difference)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "4711"},
    ).stdout
    assert printed.splitlines() == [f"{policy} None" for policy in sorted(POLICIES)]


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    record(tmp_path / "log", "priority")
    log = read_log(tmp_path / "log")
    steps = list(log)
    replayed = replay(log, lambda: ControlPlaneManager("fifo", LIMITS, seed=7))
    difference = replayed.difference
    assert difference is not None
    assert replayed.steps == difference.step > 0
    assert steps[difference.step] == LogStep(difference.at, difference.event, difference.recorded)
    assert difference.recorded != difference.replayed
    text = str(difference)
    assert f"step {difference.step} at" in text
    assert '"type":"Dispatch"' in text


def test_steps_come_back_exactly(tmp_path: Path) -> None:
    given: list[tuple[Event, float, list[Action]]] = [
        (Arrival(RequestInfo("r", "m")), 0.1 + 0.2, [Dispatch("r", "e")]),
        (Done("r", 10**30), 5, []),
        (Timer(), math.inf, [SetTimer(1.5)]),
    ]
    with EventLogWriter(tmp_path / "log") as writer:
        for event, now, actions in given:
            writer.record(event, now, actions)
    found = [(step.event, step.at, list(step.actions)) for step in read_log(tmp_path / "log")]
    assert found == given


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    record(tmp_path / "log", "fifo", 1)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_it_is_bounded_and_says_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = record(path, "fifo", 4000, max_bytes=200_000)
    files = [path, tmp_path / "log.1"]
    assert sum(file.stat().st_size for file in files) <= 200_000
    assert min(file.stat().st_size for file in files) > 0
    assert sorted(tmp_path.iterdir()) == files
    log = read_log(path)
    steps = list(log)
    assert log.header.first_step > 0
    assert log.header.first_step + len(steps) == writer.steps == 4006
    assert (steps[-1].event, steps[-1].at) == list(traffic(3, 4000))[-1]
    with pytest.raises(CorruptFileError, match="max_bytes"):
        replay(log, ControlPlaneManager)


def test_one_rotation_loses_nothing(tmp_path: Path) -> None:
    writer = record(tmp_path / "log", "fifo", 1000, max_bytes=400_000)
    log = read_log(tmp_path / "log")
    assert len(log.files) == 2
    assert log.header.first_step == 0
    replayed = replay(log, lambda: ControlPlaneManager("fifo", LIMITS, seed=7))
    assert (replayed.steps, replayed.difference) == (writer.steps, None)


def test_an_older_log_is_kept_aside(tmp_path: Path) -> None:
    record(tmp_path / "log", "fifo", 50)
    record(tmp_path / "log", "random", 20)
    log = read_log(tmp_path / "log")
    assert log.files == (tmp_path / "log",)
    assert log.header.settings["policy"] == "random"
    assert read_log(tmp_path / "log.1").header.settings["policy"] == "fifo"


def test_its_writer_died_between_two_files(tmp_path: Path) -> None:
    record(tmp_path / "log", "fifo", 50)
    (tmp_path / "log").rename(tmp_path / "log.1")
    assert len(list(read_log(tmp_path / "log"))) == 56


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    said: list[str] = []
    with files_no_longer_than(100_000):
        writer = record(tmp_path / "log", "fifo", 3000, on_stop=said.append)
        assert (tmp_path / "log").stat().st_size == 100_000
    assert said == [writer.stopped]
    assert "File too large" in said[0]
    assert writer.steps < 3006
    log = read_log(tmp_path / "log")
    replayed = replay(log, lambda: ControlPlaneManager("fifo", LIMITS, seed=7))
    assert replayed.difference is None
    assert 0 < replayed.steps < writer.steps
    assert log.torn


def test_a_folder_that_goes_away_ends_the_recording(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    writer = EventLogWriter(folder / "log", max_bytes=100_000)
    (folder / "log").unlink()
    folder.rmdir()
    for event, now in traffic(3, 1000):
        writer.record(event, now, [])
    writer.close()
    assert writer.stopped is not None
    assert "No such file" in writer.stopped


@pytest.mark.parametrize(
    "event",
    [Done("r", 10**5000), PolicyChanged("x" * 100_000), "no event"],
    ids=["number", "length", "type"],
)
def test_a_step_that_cannot_be_written_ends_the_recording(tmp_path: Path, event: Any) -> None:
    said: list[str] = []
    with EventLogWriter(tmp_path / "log", max_bytes=100_000, on_stop=said.append) as writer:
        writer.record(Timer(), 1.0, [])
        writer.record(event, 2.0, [])
        writer.record(Timer(), 3.0, [])
    assert said == [writer.stopped]
    assert [step.at for step in read_log(tmp_path / "log")] == [1.0]


def test_flush_shows_what_is_recorded(tmp_path: Path) -> None:
    with EventLogWriter(tmp_path / "log") as writer:
        writer.record(Timer(), 1.0, [])
        writer.flush()
        assert len(list(read_log(tmp_path / "log"))) == 1
    writer.record(Timer(), 2.0, [])
    assert writer.stopped is None
    assert len(list(read_log(tmp_path / "log"))) == 1


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="existing folder"):
        EventLogWriter(tmp_path / "none" / "log")
    with pytest.raises(SettingsError, match="no regular file"):
        EventLogWriter(tmp_path)
    with pytest.raises(SettingsError, match="at least"):
        EventLogWriter(tmp_path / "log", max_bytes=5)
    for settings in ({"x": object()}, {"x": math.nan}, {"x": "y" * 100_000}):
        with pytest.raises(SettingsError, match="settings"):
            EventLogWriter(tmp_path / "log", settings=settings, max_bytes=100_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda lines: [], "line 1"),
        (lambda lines: lines[1:], "it must be a Log"),
        (lambda lines: [lines[0].replace(b'"v":3', b'"v":4'), *lines[1:]], "newer SAGE"),
        (lambda lines: [lines[0].replace(b":0,", b":-1,"), *lines[1:]], "header"),
        (lambda lines: [*lines[:4], b"garbage\n", *lines[4:]], "line 5"),
        (lambda lines: [*lines[:4], lines[0], *lines[4:]], "it must be a Step"),
        (lambda lines: [*lines[:4], lines[4].replace(b'"actions":[', b'"actions":3,"x":[')],
         "it must be a Step"),
        (lambda lines: [*lines[:1], _step(b'{"type":"Dispatch","request_id":"r","engine":"e"}')],
         "of an event"),
        (lambda lines: [*lines[:1], _step(b'{"type":"Timer"}', b'[{"type":"Timer"}]')],
         "of an action"),
        (lambda lines: [*lines[:1], _step(b'{"type":"Timer"}', b"3")], "an array"),
        (lambda lines: [*lines[:1], _step(b'{"type":"Timer"}', b"[]", b'"x"')], "Step.at"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path: Path, damage: Any, part: str) -> None:
    path = tmp_path / "log"
    record(path, "fifo", 20)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(CorruptFileError) as caught:
        list(read_log(path))
    assert part in str(caught.value)
    assert str(path) in str(caught.value)


def _step(event: bytes, actions: bytes = b"[]", at: bytes = b"1.0") -> bytes:
    return b'{"v":2,"type":"Step","at":%b,"event":%b,"actions":%b}\n' % (at, event, actions)


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    record(path, "fifo", 20)
    path.write_bytes(path.read_bytes()[:-5])
    log = read_log(path)
    assert len(list(log)) == 25
    assert log.torn


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="No such file"):
        read_log(tmp_path / "log")
    path = tmp_path / "log"
    record(path, "fifo", 1000, max_bytes=400_000)
    previous = tmp_path / "log.1"
    lines = previous.read_bytes().splitlines(keepends=True)
    previous.write_bytes(b"".join(lines[:-3]))
    with pytest.raises(CorruptFileError, match="the file before it ends at"):
        list(read_log(path))


@pytest.mark.parametrize("begun", [b"", b'{"v":2,"ty'])
def test_a_writer_that_died_while_it_began_the_next_file(tmp_path: Path, begun: bytes) -> None:
    record(tmp_path / "log", "fifo", 50)
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").write_bytes(begun)
    assert len(list(read_log(tmp_path / "log"))) > 50


def test_a_writer_that_does_not_rotate_ends_at_its_size(tmp_path: Path) -> None:
    said: list[str] = []
    size = LEAST_MAX_BYTES
    writer = record(tmp_path / "log", "fifo", max_bytes=size, rotate=False, on_stop=said.append)
    assert said == [writer.stopped]
    assert f"it has reached its {size} bytes" in said[0]
    assert size - 4096 < (tmp_path / "log").stat().st_size <= size
    assert not (tmp_path / "log.1").exists()
    log = read_log(tmp_path / "log")
    replayed = replay(log, lambda: ControlPlaneManager("fifo", LIMITS, seed=7))
    assert (replayed.steps, replayed.difference) == (writer.steps, None)
