"""What an experiment is: a question, systems that answer it, and claims written down beforehand.

An experiment's file declares one subclass of :class:`Experiment` and a function ``run(config)``;
:mod:`sage_bench.registry` names it. The harness does the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sage_bench.claims import Claim
from sage_bench.interleave import Order
from sage_bench.manifest import BackendKind, ModelEntry, Workload
from sage_bench.result_folder import ResultFolder
from sage_bench.system import Case, Metric
from sage_prefect.common.errors import SettingsError, near_name


class RunConfig(BaseModel):
    """How to run an experiment. Plain data, so that a Prefect flow shows it as a form."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int | None = Field(None, ge=1, description="Rounds; none: the experiment's own number.")
    seed: int = Field(0, ge=0, description="Seed of workloads and of the bootstrap.")
    out: Path | None = Field(None, description="Results root; none: $SAGE_RESULTS_DIR, ./results.")
    quick: bool = Field(False, description="A small run that shows that all works; proves nothing.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the experiment itself, by name."
    )
    command: list[str] = Field(
        default_factory=list, description="The command line for the manifest; none: the call."
    )


class Options(BaseModel):
    """Base of an experiment's own options (``--set name=value``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Setup:
    """What :meth:`Experiment.prepare` returns: the systems, ready to be measured.

    Args:
        cases: groups of systems that are compared with each other.
        workload: for the manifest.
        claims: judged when the run ends.
        models: that take part.
        backend_kind: whether engines are real, simulated from calibration, or mocked.
        slo: service level objectives, name -> milliseconds.
        facts: checks made and choices taken before timing (recall, tuning sweeps...), for the
            manifest's options.
    """

    cases: Sequence[Case]
    workload: Workload
    claims: Sequence[Claim] = ()
    models: Sequence[ModelEntry] = ()
    backend_kind: BackendKind = "real"
    slo: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Experiment(ABC):
    """One question, measured. Subclasses set the class variables and :meth:`prepare`."""

    name: ClassVar[str]
    number: ClassVar[str] = "-"  # of the published experiments 5.1 to 5.5
    title: ClassVar[str]
    expectation: ClassVar[str]  # effects and non-effects expected before the run
    metrics: ClassVar[tuple[Metric, ...]]
    options: ClassVar[type[Options]] = Options
    rounds: ClassVar[int] = 7
    quick_rounds: ClassVar[int] = 2
    warmup: ClassVar[int] = 1
    order: ClassVar[Order] = "ABBA"
    pause_s: ClassVar[float] = 0.0  # rest before each measurement
    noise_row: ClassVar[bool] = True  # the peer a second time; False where that is too dear

    @abstractmethod
    def prepare(
        self, config: RunConfig, options: Any, folder: ResultFolder, stack: ExitStack
    ) -> Setup:
        """Build the systems.

        Args:
            config: seed, quick.
            options: an instance of ``self.options``.
            folder: where logs and extra raw data go.
            stack: what must be closed when the run ends (servers, workers) is entered here.

        Raises:
            SageError: what is needed is not there, with the way out.
        """

    def rounds_of(self, config: RunConfig) -> int:
        """Rounds of this run."""
        return config.rounds or (self.quick_rounds if config.quick else self.rounds)

    def parse_options(self, given: dict[str, Any]) -> Options:
        """Check ``--set`` options.

        Raises:
            SettingsError: an unknown option or a wrong value, with the known ones.
        """
        known = self.options.model_fields
        for name in given:
            if name not in known:
                raise SettingsError(
                    f"experiment {self.name!r} has no option {name!r}.",
                    hint=f"{near_name(name, known)}Known: {', '.join(known) or 'none'}.",
                )
        try:
            return self.options.model_validate(given)
        except ValidationError as error:
            wrong = [f"{i['loc'][0]}={i['input']!r}: {i['msg']}" for i in error.errors()]
            raise SettingsError(
                f"options of experiment {self.name!r} are wrong: {'; '.join(wrong)}."
            ) from None
