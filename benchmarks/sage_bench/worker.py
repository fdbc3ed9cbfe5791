"""A system in a process of its own that lives through all rounds.

Libraries set thread counts once per process, and their idle threads spin: systems that share a
process would disturb each other. One line of JSON asks, one line answers; a call's cost is
measured inside the worker, so that the pipe is not part of it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from sage_prefect.common.errors import BenchmarkError


class Worker:
    """Runs ``target`` (``module:Class``), made with ``arguments``, in a child process.

    Args:
        target: a class; its methods take and return what JSON can carry.
        arguments: keyword arguments of its constructor.
        log: file for the worker's standard error (and what its libraries print).
        env: changes to this process's environment (thread counts...).

    Raises:
        BenchmarkError: on entering: the object could not be made.
    """

    def __init__(
        self,
        target: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.target, self._arguments, self._log = target, dict(arguments or {}), log
        self._env = dict(env or {})
        self._generation: int | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __enter__(self) -> Worker:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sage_bench.worker", self.target],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._env},
            )
        try:
            self._exchange(self._arguments)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def renew(self, generation: int) -> None:
        """Start a new process unless this one was started for ``generation`` (a round's number).

        Where a process's memory happens to lie can make it half as fast again, for as long as it
        lives: rounds in processes of their own turn that luck into noise that the interval shows.
        """
        if generation != self._generation:
            self._end()
            self.__enter__()
            self._generation = generation

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the object.

        Raises:
            BenchmarkError: it raised (the error's words are in the message), or the worker died.
        """
        return self._exchange({"method": method, "arguments": arguments})

    def _exchange(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(orjson.dumps(request) + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise BenchmarkError(
                f"worker {self.target} died with status {self._process.wait()}.",
                hint=f"Its log: {self._log}.",
            )
        answer = orjson.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"worker {self.target}: {answer['error']}")
        return answer["result"]

    def _end(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died before it read its last request
                self._process.stdin.close()  # end of input: the worker leaves
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Wall and CPU seconds (all threads of this process) of ``work()``, and what it returned."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}, result


def serve(target: str) -> None:
    """The worker's side: answer until the input ends."""
    # Libraries print to standard output; the answers keep the real one to themselves.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    made: Any = None
    while line := requests.readline():
        request = orjson.loads(line)
        try:
            if made is None:
                module, _, name = target.partition(":")
                made = getattr(import_module(module), name)(**request)
                result = None
            else:
                result = getattr(made, request["method"])(**request["arguments"])
            answer = orjson.dumps({"result": result}, option=orjson.OPT_SERIALIZE_NUMPY)
        except Exception as error:  # noqa: BLE001 - raised again on the other side
            answer = orjson.dumps({"error": f"{type(error).__name__}: {error}"})
        answers.write(answer + b"\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
