"""Servers that benchmarks start: ready when entered, gone when left."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import psutil
import pytest

from sage_bench.server import Server
from sage_prefect.common.errors import BenchmarkError

# Ready only at the third question, with a child of its own that ignores SIGTERM.
PROGRAM = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); "
    "time.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
asked = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        self.send_response(200 if asked > 2 and self.path == "/health" else 503)
        self.end_headers()
        self.wfile.write(str(child.pid).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_waits_until_ready_and_ends_the_whole_group(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "{port}"]
    with Server("s", command, log=tmp_path / "s.log", stop_timeout_s=1.0) as server:
        answer = httpx.get(server.url + "/health", trust_env=False)
        assert answer.status_code == 200
        pids = [server.pid, int(answer.text)]
        assert all(psutil.pid_exists(pid) for pid in pids)
    gone = [not psutil.pid_exists(p) or psutil.Process(p).status() == "zombie" for p in pids]
    assert all(gone)


def test_one_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the port is cursed')"]
    with pytest.raises(BenchmarkError, match=r"ended with status 1 .*the port is cursed"):
        Server("s", command, log=tmp_path / "s.log").__enter__()


def test_one_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('thinking', flush=True); time.sleep(600)"]
    server = Server("s", command, log=tmp_path / "s.log", start_timeout_s=0.5)
    with pytest.raises(BenchmarkError, match=r"not ready after 0\.5 s"):
        server.__enter__()
    assert not psutil.pid_exists(server.pid)
