"""``sage models pull``: packages, the hub, and a hub that is not there."""

from __future__ import annotations

import http.server
import importlib.util
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sage_prefect.common.errors import MissingDependencyError
from sage_prefect.platform import models
from sage_prefect.platform.model_pull import pull


def test_what_is_here_is_only_checked(home: Path) -> None:
    said: list[str] = []
    assert pull("smollm2-135m", said.append).mode == "chat"
    assert "checksum right" in said[-1]
    path = str(models.resolve("smollm2-135m").path)
    assert str(pull(path, said.append).path) == path
    assert "here already" in said[-1]


def pull_elsewhere(name: str, hub: str) -> subprocess.CompletedProcess[str]:
    """Pull in a process of its own: huggingface_hub reads its address once, at import."""
    code = (
        "import sys\n"
        "from sage_prefect.platform.model_pull import pull\n"
        "from sage_prefect.common.errors import ModelNotFoundError\n"
        "try:\n    pull(sys.argv[1], print)\n"
        "except ModelNotFoundError as error:\n    print('REFUSED', error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HOME"] = os.environ["SAGE_HOME"]
    return subprocess.run(
        [sys.executable, "-c", code, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_hub_out_of_reach(home: Path, unused_port: int) -> None:
    done = pull_elsewhere("org/name", f"http://127.0.0.1:{unused_port}")
    refusal = "REFUSED cannot pull 'org/name' from the hub: ConnectError: "
    assert refusal in done.stdout, done.stderr
    assert "the default models need no hub" in done.stdout
    assert models.pulled_names() == ()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as one download of one file needs."""

    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    content += struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    drop_first = False
    dropped = False

    def answer(self, *, body: bool) -> None:
        if self.drop_first and not Hub.dropped and self.path.endswith(".gguf"):
            Hub.dropped = True
            return  # the connection closes without an answer
        found = self.path == "/org/tiny/resolve/main/tiny.gguf"
        content = self.content if found else b"Entry not found"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"etag"')
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub that has ``org/tiny`` with ``tiny.gguf``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_pull_one_file_from_a_hub(home: Path, hub: str) -> None:
    done = pull_elsewhere("org/tiny:tiny.gguf", hub)
    assert "REFUSED" not in done.stdout, done.stdout + done.stderr
    found = models.resolve("org/tiny:tiny.gguf")
    assert (found.format, found.mode, found.origin) == ("gguf", "chat", "pulled")
    assert found.path.read_bytes() == Hub.content
    assert models.pulled_names() == ("org/tiny:tiny.gguf",)


def test_one_broken_connection_is_survived(
    home: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "drop_first", True)
    monkeypatch.setattr(Hub, "dropped", False)
    done = pull_elsewhere("org/tiny:tiny.gguf", hub)
    assert Hub.dropped
    assert (done.returncode, "REFUSED" in done.stdout) == (0, False), done.stdout + done.stderr
    assert models.resolve("org/tiny:tiny.gguf").path.read_bytes() == Hub.content


def test_offline_is_named(home: Path, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = pull_elsewhere("org/tiny:tiny.gguf", hub)
    assert "from the hub: OfflineModeIsEnabled: " in done.stdout, done.stderr
    assert "HF_HUB_OFFLINE" in done.stdout


def test_file_that_the_hub_does_not_have(home: Path, hub: str) -> None:
    done = pull_elsewhere("org/tiny:big.gguf", hub)
    assert "REFUSED cannot pull 'org/tiny:big.gguf' from the hub" in done.stdout, done.stderr
    assert models.pulled_names() == ()


def test_hub_client_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "huggingface_hub" else real(name),
    )
    with pytest.raises(MissingDependencyError, match="huggingface_hub"):
        pull("org/name", print)
