"""How long does ``import sage_prefect`` take in a fresh interpreter?

A CLI, a gateway worker and a Dask worker all pay it. Measured beside an interpreter that imports
nothing and beside ``import prefect``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from sage_bench.child import run_child
from sage_bench.claims import Claim
from sage_bench.experiment import Experiment, RunConfig, Setup
from sage_bench.manifest import Workload
from sage_bench.result_folder import ResultFolder
from sage_bench.session import RunResult, execute
from sage_bench.system import Case, Metric, Reading, System

# What the library promises not to load (design.md section 2).
HEAVY = ("prefect", "dask", "distributed", "torch", "litellm", "transformers")

# perf_counter inside: the interpreter's own start is not part of the import.
_PROGRAM = """\
import sys, time
t = time.perf_counter()
{statement}
t = time.perf_counter() - t
import json
heavy = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps({{"import_s": t, "modules": len(sys.modules), "heavy": heavy}}))
"""

STATEMENTS = {
    "python -c pass": "pass",
    "import sage_prefect": "import sage_prefect",
    "from sage_prefect import Pipeline": "from sage_prefect import Pipeline",
    "import prefect": "import prefect",
}
PEER = "import prefect"


class Imports(Experiment):
    """Import time in fresh interpreters, files in the page cache."""

    name = "imports"
    title = "Import time of sage_prefect beside an empty interpreter and beside prefect"
    expectation = (
        "sage_prefect loads no heavy module and takes well under 0.3 s; prefect takes seconds. "
        "Pipeline costs more, for it brings pyarrow."
    )
    metrics = (
        Metric("import_s", "s", "lower"),
        Metric("process_s", "s, whole interpreter", "lower"),
        Metric("cpu_ms", "ms CPU, whole interpreter", "lower"),
        Metric("heavy_modules", f"of {', '.join(HEAVY)}", "lower", "mean"),
    )
    rounds = 15

    def prepare(
        self, config: RunConfig, options: Any, folder: ResultFolder, stack: ExitStack
    ) -> Setup:
        """Nothing to start: every measurement is a process of its own."""
        systems = tuple(
            System(
                name,
                _measure(statement),
                role="peer" if name == PEER else "subject",
                config={"argv": ["python", "-c", _program(statement)]},
                version=sys.version.split()[0],
            )
            for name, statement in STATEMENTS.items()
        )
        programs = "".join(_program(statement) for statement in STATEMENTS.values())
        return Setup(
            cases=[Case("", systems)],
            claims=[
                Claim(
                    "import-time",
                    "import sage_prefect takes less than 0.3 s",
                    "import_s",
                    "import sage_prefect",
                    "<=",
                    0.3,
                ),
                Claim(
                    "import-light",
                    f"import sage_prefect loads none of {', '.join(HEAVY)}",
                    "heavy_modules",
                    "import sage_prefect",
                    "<=",
                    0.0,
                ),
            ],
            workload=Workload(
                dataset="import statements",
                dataset_sha256=hashlib.sha256(programs.encode()).hexdigest(),
                items=len(STATEMENTS),
                sizes={"statements": list(STATEMENTS.values())},
                arrival="closed loop, one interpreter at a time",
                mix="each statement once per round",
                tenants="none",
            ),
        )


def _program(statement: str) -> str:
    return _PROGRAM.format(statement=statement, heavy=HEAVY)


def _measure(statement: str) -> Callable[[int], Reading]:
    def measure(_round: int) -> Reading:
        child = run_child([sys.executable, "-c", _program(statement)])
        found = json.loads(child.stdout)
        return Reading(
            values={
                "import_s": found["import_s"],
                "process_s": child.wall_s,
                "cpu_ms": child.cpu_s * 1000,
                "heavy_modules": len(found["heavy"]),
            },
            wall_s=child.wall_s,
            cpu_s=child.cpu_s,
            detail={**found, "peak_rss_bytes": child.peak_rss_bytes},
        )

    return measure


def run(config: RunConfig) -> RunResult:
    """Run the experiment (what a Prefect flow calls)."""
    return execute(Imports(), config)
