"""The leak check of conftest.py finds what it is for, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LEAKS = {
    "a thread": (
        "import threading\nstop = threading.Event()\n"
        "def test_it():\n"
        "    threading.Thread(target=stop.wait, name='left', daemon=True).start()\n",
        "thread 'left'",
    ),
    "a child process": (
        "import subprocess, sys\nkept = []\n"
        "def test_it():\n"
        "    kept.append(subprocess.Popen([sys.executable, '-c', 'input()'], "
        "stdin=subprocess.PIPE))\n",
        "process ",
    ),
    "a socket": (
        "import socket\nkept = []\n"
        "def test_it():\n    kept.append(socket.create_server(('127.0.0.1', 0)))\n",
        "socket:",
    ),
    "a file": (
        "kept = []\ndef test_it(tmp_path):\n    kept.append(open(tmp_path / 'left.txt', 'w'))\n",
        "left.txt",
    ),
}
CLEAN = (
    "import socket, subprocess, sys, threading\n"
    "def test_it(tmp_path, sage_home, free_port):\n"
    "    thread = threading.Thread(target=int)\n"
    "    thread.start()\n"
    "    thread.join()\n"
    "    subprocess.run([sys.executable, '-c', ''], check=True)\n"
    "    with socket.create_server(('127.0.0.1', free_port())): pass\n"
    "    (sage_home / 'x').write_text('x')\n"
)


def run_pytest(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    conftest = (Path(__file__).parent / "conftest.py").read_text()
    (folder / "conftest.py").write_text(conftest.replace("SETTLE_S = 5.0", "SETTLE_S = 0.2"))
    (folder / "test_inner.py").write_text(test)
    (folder / "pytest.ini").write_text("[pytest]\n")
    try:
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)


@pytest.mark.parametrize("kind", sorted(LEAKS))
def test_a_leak_fails_the_test(kind: str, tmp_path: Path) -> None:
    test, message = LEAKS[kind]
    done = run_pytest(tmp_path, test)
    assert done.returncode == 1
    assert "leaves behind" in done.stdout
    assert message in done.stdout


def test_a_clean_test_passes(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, CLEAN)
    assert done.returncode == 0, done.stdout
