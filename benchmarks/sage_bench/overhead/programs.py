"""The compiled mock engine and load client: neither may be what limits a gateway.

Built with the machine's C++ compiler when an experiment begins; ``upstream.cpp`` and ``client.cpp``
say how each is called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from sage_prefect.common.errors import BenchmarkError

_SOURCES = Path(__file__).parent
_SLACK_S = 60.0


def build(name: str, folder: Path) -> Path:
    """Compile ``upstream`` or ``client`` into ``folder``; the program.

    Raises:
        BenchmarkError: there is no C++ compiler, or it fails; quotes what it says.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise BenchmarkError(
            "the load client needs a C++20 compiler, and none was found.",
            hint="Install one (Debian: apt install g++), or name it in the variable CXX.",
        )
    program = folder / name
    done = subprocess.run(
        [compiler, "-std=c++20", "-O2", "-o", str(program), str(_SOURCES / f"{name}.cpp")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{compiler} cannot build {name}.cpp: {done.stderr.strip()[-600:]}")
    return program


class Upstream:
    """Mock engines on free ports, in one process; they end with the ``with`` block.

    Args:
        program: from :func:`build`.
        engines: how many ports.
        dimensions: of the vectors that embedding calls get.
    """

    def __init__(self, program: Path, engines: int, dimensions: int) -> None:
        self._command = [str(program), str(engines), str(dimensions)]
        self.ports: list[int] = []

    def __enter__(self) -> Upstream:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.ports = [int(port) for port in self._process.stdout.readline().split()]
        if not self.ports:
            raise BenchmarkError(f"the mock engine did not start: `{' '.join(self._command)}`.")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=_SLACK_S)  # its standard input ends: so does it


class Client:
    """Runs the load client.

    Args:
        program: from :func:`build`.
        key: API key that it sends.
    """

    def __init__(self, program: Path, key: str) -> None:
        self._program = str(program)
        self._key = key

    def run(
        self, mode: str, port: int, count: float, seconds: float, bodies: Sequence[str]
    ) -> Mapping[str, Any]:
        """One ``closed`` or ``rate`` run; what the program reports.

        Args:
            count: connections, or requests per second.
            bodies: ``PATH=FILE`` each, taken in turn.

        Raises:
            BenchmarkError: some request was not answered with 200, or none at all was.
        """
        command = [self._program, mode, str(port), f"{count:g}", f"{seconds:g}", self._key, *bodies]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds + _SLACK_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"the {mode} run did not end; a server hangs.") from None
        if done.returncode != 0:
            raise BenchmarkError(f"the load client failed: {done.stderr.strip()[-300:]}")
        report: dict[str, Any] = orjson.loads(done.stdout)
        if report["errors"] or not report["answers"]:
            raise BenchmarkError(
                f"{report['errors']} of {report['answers']} requests failed; the first: "
                f"{report['first_error'] or 'none was answered'}"
            )
        return report

    def hold(self, port: int, idle: int, streams: int, bodies: Sequence[str]) -> Holding:
        """Open connections and keep them: ``idle`` that have asked once, and running streams."""
        command = [self._program, "hold", str(port), str(idle), str(streams), self._key, *bodies]
        return Holding(command)


class Holding:
    """Connections held open inside a ``with`` block."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)

    def __enter__(self) -> Holding:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "held\n":
            _, complaint = self._process.communicate(timeout=_SLACK_S)
            raise BenchmarkError(f"the connections could not be opened: {complaint.strip()[-300:]}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        out, _ = self._process.communicate(timeout=_SLACK_S)
        if kind is None and (report := orjson.loads(out))["errors"]:
            raise BenchmarkError(f"while connections were held: {report['first_error']}")
