"""How long ``./quickstart.sh`` takes: in a fresh clone with empty caches, and again there.

The first figure is mostly the network's and the disk's; it is recorded, not claimed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import Field

from sage_bench.child import run_child
from sage_bench.experiment import Experiment, Options, RunConfig, Setup
from sage_bench.manifest import Workload
from sage_bench.result_folder import ResultFolder
from sage_bench.session import RunResult, execute
from sage_bench.system import Case, Metric, Reading, System
from sage_prefect.common.errors import BenchmarkError

_STEP = re.compile(r"^\[(\d+)/\d+\] (.+)$")
_TOOK = re.compile(r"\((\d+) s\)\s*$")


class QuickstartOptions(Options):
    """``--set`` options of ``quickstart``."""

    keep_caches: bool = Field(
        False, description="Use the user's download caches; false: empty ones, as on a new machine."
    )
    demo: bool = Field(False, description="Run `sage demo` too (the script's last step).")
    arguments: str = Field("", description="More arguments of quickstart.sh, e.g. --uv.")
    timeout_s: float = Field(3600.0, gt=0, description="Of one run.")


class Quickstart(Experiment):
    """Wall time of the setup script. Commits only: what is not committed is not in the clone."""

    name = "quickstart"
    title = "./quickstart.sh in a fresh clone, and again"
    expectation = "Minutes for the first time (network and disk), seconds for the second."
    metrics = (Metric("wall_s", "s", "lower"), Metric("cpu_s", "s CPU", "lower"))
    options = QuickstartOptions
    rounds = 1
    quick_rounds = 1
    warmup = 0
    order = "ABAB"  # the second run needs the first one's clone
    noise_row = False

    def prepare(
        self, config: RunConfig, options: Any, folder: ResultFolder, stack: ExitStack
    ) -> Setup:
        """Find the checkout.

        Raises:
            BenchmarkError: SAGE is not run from a git checkout.
        """
        root = Path(__file__).resolve().parents[3]
        if not (root / "quickstart.sh").is_file() or not (root / ".git").exists():
            raise BenchmarkError(
                "there is no git checkout with a quickstart.sh around this installation.",
                hint="Run `.venv/bin/sage bench run quickstart` in a clone of the repository.",
            )
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sage-bench-")))
        script = _Script(root, scratch, options, folder.logs())
        command = script.command
        return Setup(
            cases=[
                Case(
                    "",
                    (
                        System("first run", script.first, "peer", {"argv": command}),
                        System("again", script.again, config={"argv": command}),
                    ),
                )
            ],
            workload=Workload(
                dataset="a clone of this repository's HEAD",
                dataset_sha256=_head(root),
                items=1,
                sizes={"caches": "the user's" if options.keep_caches else "empty"},
                arrival="closed loop",
                mix="set up, then set up again",
                tenants="none",
            ),
        )


class _Script:
    """Runs the script in clones; each first run throws the clone before away."""

    def __init__(self, root: Path, scratch: Path, options: QuickstartOptions, logs: Path) -> None:
        self._root, self._scratch, self._options, self._logs = root, scratch, options, logs
        self._clone = scratch / "clone"
        self.command = [
            "./quickstart.sh",
            *(() if options.demo else ("--no-demo",)),
            *options.arguments.split(),
        ]

    def first(self, number: int) -> Reading:
        """In a new clone, with empty caches."""
        for used in (self._clone, self._scratch / "home"):
            shutil.rmtree(used, ignore_errors=True)
        clone = ["git", "clone", "--quiet", "--no-hardlinks", str(self._root), str(self._clone)]
        subprocess.run(clone, check=True, capture_output=True)
        return self._run(f"first-{number}")

    def again(self, number: int) -> Reading:
        """In the clone of the first run."""
        return self._run(f"again-{number}")

    def _run(self, log: str) -> Reading:
        home = self._scratch / "home"
        home.mkdir(exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "SAGE_"))}
        env["SAGE_HOME"] = str(home / "sage")
        if not self._options.keep_caches:
            caches = {"PIP_CACHE_DIR": "pip", "UV_CACHE_DIR": "uv", "XDG_CACHE_HOME": "xdg"}
            env |= {variable: str(home / leaf) for variable, leaf in caches.items()}
        child = run_child(self.command, env=env, cwd=self._clone, timeout_s=self._options.timeout_s)
        (self._logs / f"{log}.log").write_text(child.stdout + child.stderr)
        return Reading(
            values={"wall_s": child.wall_s, "cpu_s": child.cpu_s},
            wall_s=child.wall_s,
            cpu_s=child.cpu_s,
            detail={"steps_s": step_times(child.stdout)},
        )


def step_times(output: str) -> dict[str, int]:
    """Seconds per step, as the script prints them: ``[1/4] name`` and, later, ``... (12 s)``."""
    steps: dict[str, int] = {}
    current = ""
    for line in output.splitlines():
        if step := _STEP.match(line):
            current = step[2]
        elif current and (took := _TOOK.search(line)):
            steps[current] = int(took[1])
    return steps


def _head(root: Path) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()


def run(config: RunConfig) -> RunResult:
    """Run the experiment (what a Prefect flow calls)."""
    return execute(Quickstart(), config)
