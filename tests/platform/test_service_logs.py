"""Log files: rotation, trimming, tails."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage_prefect.common.errors import ServiceError
from sage_prefect.platform import service_logs


def test_rotated_at_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_logs, "ROTATE_AT_START_BYTES", 10)
    for number in range(6):
        with service_logs.open_log("web") as log:
            log.write(f"start number {number}\n".encode())
    file = service_logs.log_file("web")
    names = sorted(path.name for path in file.parent.iterdir())
    assert names == ["web.log", "web.log.1", "web.log.2", "web.log.3"]
    assert file.read_text() == "start number 5\n"
    assert file.with_suffix(".log.3").read_text() == "start number 2\n"


def test_trimmed_while_it_is_written(home: Path) -> None:
    with service_logs.open_log("web") as log:
        log.write(b"x" * 100)
        assert not service_logs.trim_log("web", limit=100)
        assert service_logs.trim_log("web", limit=99)
        log.write(b"after")
    assert service_logs.log_file("web").read_bytes() == b"after"
    assert service_logs.log_file("web").with_suffix(".log.1").read_bytes() == b"x" * 100
    assert not service_logs.trim_log("ghost")


def test_tail(home: Path) -> None:
    assert service_logs.tail("web") == []
    with service_logs.open_log("web") as log:
        log.write("\n".join(f"line {n}" for n in range(1000)).encode())
    assert service_logs.tail("web", 2) == ["line 998", "line 999"]
    size = service_logs.log_file("web").stat().st_size
    assert service_logs.tail("web", since=size) == []
    # An offset beyond the end: the log was emptied since.
    assert service_logs.tail("web", 1, since=size + 10) == []


def test_unwritable(home: Path) -> None:
    home.mkdir()
    (home / "state").write_text("a file")
    with pytest.raises(ServiceError, match="cannot write log file"):
        service_logs.open_log("web")
