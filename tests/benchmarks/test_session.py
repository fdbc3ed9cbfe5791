"""From declaration to result folder and back, with a small experiment of real work."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from sage_bench.claims import Claim, Verdict
from sage_bench.compare import compare
from sage_bench.experiment import Experiment, Options, RunConfig, Setup
from sage_bench.manifest import Workload
from sage_bench.report import context_lines, figure, overviews, print_report
from sage_bench.result_folder import ResultFolder
from sage_bench.session import execute, load
from sage_bench.system import Case, Metric, Reading, System
from sage_prefect.common.errors import BenchmarkError, CorruptFileError, SettingsError


class CountingOptions(Options):
    """What the small experiment can be told."""

    steps: int = 100
    explode: str = ""


class Counting(Experiment):
    """Counts instead of timing, so that its figures are the same on every machine."""

    name = "counting"
    title = "Steps of two ways of adding"
    expectation = "twice as many"
    metrics = (Metric("steps", "steps", "lower"),)
    options = CountingOptions
    rounds = 5

    def prepare(
        self, config: RunConfig, options: Any, folder: ResultFolder, stack: ExitStack
    ) -> Setup:
        def way(name: str, factor: int) -> Any:
            def measure(number: int) -> Reading:
                if options.explode in (name, "all"):
                    raise RuntimeError(f"{name} broke in round {number}")
                steps = sum(1 for _ in range(options.steps * factor)) + number
                return Reading({"steps": steps}, wall_s=0.0, cpu_s=0.0)

            return measure

        return Setup(
            cases=[
                Case(
                    "",
                    (System("plain", way("plain", 1), "peer"), System("double", way("double", 2))),
                )
            ],
            claims=[
                Claim("dear", "double costs at least 1.5", "steps", "double", ">=", 1.5, "plain"),
                Claim("cheap", "double costs at most 1.5", "steps", "double", "<=", 1.5, "plain"),
                Claim("bounded", "plain under 1e9", "steps", "plain", "<=", 1e9),
            ],
            workload=Workload(
                dataset="range",
                dataset_sha256="0" * 64,
                items=options.steps,
                sizes={},
                arrival="closed loop",
                mix="one",
                tenants="none",
            ),
            facts={"checked": True},
        )


def _run(tmp_path: Path, **options: Any) -> Any:
    rounds = options.pop("rounds", None)
    return execute(Counting(), RunConfig(out=tmp_path, options=options, rounds=rounds))


def test_a_run_leaves_a_complete_folder(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    config = RunConfig(out=tmp_path, command=["sage", "bench", "run", "counting"])
    result = execute(Counting(), config, lambda *step: seen.append(step))
    files = {path.name for path in result.folder.path.iterdir()}
    assert files == {
        "manifest.json",
        "packages.txt",
        "measurements.jsonl",
        "summary.json",
        "summary.md",
    }
    assert seen[-1][1:] == (17, 17)  # 2 of warm-up, 5 rounds of 3
    manifest = result.folder.read_manifest()
    assert manifest.status == "complete"
    assert manifest.rounds == 5
    assert manifest.options["found_before_timing"] == {"checked": True}
    assert [(s.name, s.role) for s in manifest.systems] == [
        ("plain", "peer"),
        ("double", "subject"),
        ("plain (A/A)", "noise"),
    ]
    assert len(list(result.folder.read("measurements"))) == 17


def test_figures_and_verdicts(tmp_path: Path) -> None:
    result = _run(tmp_path)
    (table,) = result.summary.tables
    double, noise = table.row("double"), table.row("plain (A/A)")
    assert double is not None
    assert double.ratio is not None
    assert double.ratio.estimate == pytest.approx(202 / 102)
    assert noise is not None
    assert noise.ratio is not None
    assert noise.ratio.contains(1.0)
    verdicts = [outcome.verdict for outcome in result.summary.outcomes]
    assert verdicts == [Verdict.PASS, Verdict.FAIL, Verdict.PASS]
    assert not result.passed


def test_reading_back_gives_the_same_figures(tmp_path: Path) -> None:
    result = _run(tmp_path)
    again = load(result.folder.path)
    assert again.summary.to_json() == result.summary.to_json()
    stored = orjson.loads((result.folder.path / "summary.json").read_bytes())
    assert stored["claims"][1]["verdict"] == "FAIL"


def test_terminal_markdown_and_json_say_the_same(tmp_path: Path) -> None:
    result = _run(tmp_path)
    console = Console(record=True, width=200, file=None, quiet=True)
    with console.capture() as shown:
        quiet = Console(width=200, file=console.file, record=True)
        print_report(quiet, result.summary, result.manifest)
    terminal = quiet.export_text() + shown.get()
    text = (result.folder.path / "summary.md").read_text()
    for row in result.summary.tables[0].rows:
        assert row.value is not None
        for where in (terminal, text):
            assert row.system in where
            assert figure(row.value.estimate) in where
    for verdict in ("PASS", "FAIL"):
        assert verdict in terminal
        assert f"**{verdict}**" in text
    assert "Expected before the run: twice as many" in text


def test_failures_are_counted_and_fail_the_claim(tmp_path: Path) -> None:
    result = _run(tmp_path, explode="double")
    assert result.summary.failures == 5
    assert result.summary.outcomes[0].verdict is Verdict.FAIL
    assert "5 measurements failed" in (result.folder.path / "summary.md").read_text()
    errors = [line["error"] for line in result.folder.read("measurements") if line["error"]]
    assert errors[0] == "RuntimeError: double broke in round -1"


def test_nothing_measured_is_an_error_and_no_result(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"all 17 measurements failed; the first, of .*broke"):
        _run(tmp_path, explode="all")
    (folder,) = (tmp_path / "counting").iterdir()
    assert not (folder / "summary.json").exists()
    with pytest.raises(BenchmarkError, match="is failed: it has no figures"):
        load(folder)


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    def interrupt(_what: str, done: int, _all: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(Counting(), RunConfig(out=tmp_path), interrupt)
    (folder,) = (tmp_path / "counting").iterdir()
    manifest = ResultFolder.open(folder).read_manifest()
    assert manifest.status == "interrupted"
    assert any("not a result" in line for line in context_lines(manifest))
    assert len(list(ResultFolder.open(folder).read("measurements"))) == 4


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no option 'step'.*Did you mean 'steps'"):
        _run(tmp_path, step=1)
    with pytest.raises(SettingsError, match="steps='many'"):
        _run(tmp_path, steps="many")
    assert not list(tmp_path.iterdir())


def test_damaged_summary(tmp_path: Path) -> None:
    folder = _run(tmp_path).folder
    (folder.path / "summary.json").write_text('{"metrics": [{"nom": 1}], "declared_claims": []}')
    with pytest.raises(CorruptFileError, match="another shape"):
        load(folder.path)


def test_compare(tmp_path: Path) -> None:
    before, after, same = _run(tmp_path), _run(tmp_path, steps=300), _run(tmp_path)
    changes = {change.system: change for change in compare(before, after).changes}
    assert set(changes) == {"plain", "double"}
    assert changes["plain"].change == "worse"
    assert changes["plain"].ratio.estimate == pytest.approx(302 / 102)
    assert {c.change for c in compare(before, same).changes} == {"no difference shown"}
    assert {c.change for c in compare(after, before).changes} == {"better"}


def test_compare_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    class Other(Counting):
        name = "other"

    before = _run(tmp_path)
    after = execute(Other(), RunConfig(out=tmp_path, rounds=2, seed=4))
    with pytest.raises(BenchmarkError, match=r"'counting'.*'other'"):
        compare(before, after)


def test_several_cases_have_an_overview(tmp_path: Path) -> None:
    class TwoCases(Counting):
        def prepare(self, *arguments: Any) -> Setup:
            setup = super().prepare(*arguments)
            systems = setup.cases[0].systems
            return replace(setup, cases=[Case("small", systems), Case("large", systems)])

    result = execute(TwoCases(), RunConfig(out=tmp_path))
    (overview,) = overviews(result.summary)
    assert overview.systems == ("plain", "plain (A/A)", "double")
    assert [line[0] for line in overview.lines] == ["small", "large"]
    assert overview.lines[0][3].startswith("202.0 (1.980 [")
    assert overviews(_run(tmp_path).summary) == []
    # The claims speak of a case that is not there: they stay open.
    assert {o.verdict for o in result.summary.outcomes} == {Verdict.UNPROVED}


def test_figure() -> None:
    assert [figure(v) for v in (None, 0, 1234567.0, 12.3456, 0.00123456, 1e-9, 2e9)] == [
        "-",
        "0",
        "1,234,567",
        "12.35",
        "0.001235",
        "1.000e-09",
        "2.000e+09",
    ]
