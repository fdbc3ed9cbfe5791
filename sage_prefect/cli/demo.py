"""``sage demo``: the main job, end to end, on real input."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_prefect.cli.console import console, seconds
from sage_prefect.common.errors import SettingsError

if TYPE_CHECKING:
    from sage_prefect.kernel.report import RunReport


_SET_ASIDE_SHOWN = 10


def demo(
    docs: Annotated[
        list[Path] | None,
        typer.Option(help="Your files or folders instead of the Python documentation."),
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="Your question (may be given several times).")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="A JSONL file with a `question` per line.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ingest again even if nothing has changed.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write answers and figures to this JSON file.")
    ] = None,
) -> None:
    """Read documents, embed and index them, answer questions: as Prefect flows, on Dask workers,
    with every model call through the gateway. Starts what is not running yet."""
    from sage_prefect.cli.interrupts import stopping_on_interrupt
    from sage_prefect.cli.lifecycle import start_stack
    from sage_prefect.common.settings import load_settings

    paths = _checked(docs)
    asked = _questions(question, questions, own_docs=bool(paths))
    timings: dict[str, float] = {}
    with stopping_on_interrupt() as started:
        with _timed(timings, "services"):
            start_stack(load_settings(), started=started)
        _use_prefect()
        with _timed(timings, "ingest"):
            ingested = _ingest(paths, fresh)
        with _timed(timings, "answer"):
            answered = _answer(_index_name(paths), asked)
    rows = _read(answered)
    from sage_prefect.cli.demo_report import figures, show

    facts = figures(ingested, answered, rows, timings)
    show(rows, facts)
    if out is not None:
        from sage_prefect.cli.demo_report import write

        write(out, rows, facts)
        console.print(f"written to {out}")


def _checked(docs: list[Path] | None) -> list[Path]:
    for path in docs or []:
        if not path.exists():
            raise SettingsError(
                f"--docs {str(path)!r} does not exist (looked from {Path.cwd()}).",
                hint="Give a file, a folder, or leave --docs out for the Python documentation.",
            )
    return [path.absolute() for path in docs or []]


def _questions(
    question: list[str] | None, file: Path | None, *, own_docs: bool
) -> list[dict[str, Any]] | Path:
    """Rows with a ``question``, or the file that holds them."""
    if question and file:
        raise SettingsError("--question and --questions are both given.", hint="Use one of them.")
    if question:
        empty = [text for text in question if not text.strip()]
        if empty:
            raise SettingsError("--question is empty.", hint="Ask something.")
        return [{"question": text} for text in question]
    if file is not None:
        if not file.is_file():
            raise SettingsError(f"--questions {str(file)!r} is not a file.")
        return file.absolute()
    if own_docs:
        raise SettingsError(
            "--docs is given, but no question.",
            hint='Add --question "..." (several are fine) or --questions FILE.jsonl.',
        )
    from sage_prefect.orchestration.examples.rag import QUESTIONS

    return Path(QUESTIONS)


def _index_name(paths: list[Path]) -> str:
    if not paths:
        return "python-docs"
    from sage_prefect.kernel.fingerprint import fingerprint

    return f"docs-{fingerprint([str(path) for path in paths])[:8]}"


def _use_prefect() -> None:
    """Point this process at our Prefect server; must come before ``import prefect``."""
    import os

    from sage_prefect.cli.lifecycle import client_environment

    os.environ.update(client_environment())
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")


def _ingest(paths: list[Path], fresh: bool) -> RunReport:
    from sage_prefect.kernel.runners import runner
    from sage_prefect.orchestration.examples.rag import ingest_pipeline

    pipeline = ingest_pipeline(docs=[str(path) for path in paths], index=_index_name(paths))
    console.rule("ingest", align="left")
    console.print(pipeline.explain(), markup=False)
    report = runner("prefect").run(
        pipeline, reuse="never" if fresh else "always", on_progress=_progress("ingest")
    )
    _show_set_aside(report)
    return report


def _answer(index: str, asked: list[dict[str, Any]] | Path) -> RunReport:
    from sage_prefect.kernel.runners import runner
    from sage_prefect.orchestration.examples.rag import answer_pipeline

    pipeline = answer_pipeline(
        questions=asked if isinstance(asked, list) else str(asked), index=index
    )
    console.rule("answer", align="left")
    console.print(pipeline.explain(), markup=False)
    report = runner("prefect").run(pipeline, reuse="unfinished", on_progress=_progress("answer"))
    _show_set_aside(report)
    return report


def _show_set_aside(report: RunReport) -> None:
    for letter in report.dead_letters[:_SET_ASIDE_SHOWN]:
        console.print(f"  set aside: {letter.error}", style="yellow", markup=False)
    left = len(report.dead_letters) - _SET_ASIDE_SHOWN
    if left > 0:
        console.print(f"  ... and {left} more", style="yellow")


def _progress(flow: str) -> Any:
    started = time.monotonic()

    def show(done: int, total: int) -> None:
        elapsed = time.monotonic() - started
        console.print(f"  [dim]{elapsed:5.1f} s[/dim]  {flow}: {done}/{total} partitions")

    return show


def _read(answered: RunReport) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(answered.committed.location).to_pylist()
    return rows


class _timed:  # noqa: N801 - reads as a statement
    """Record the wall time of a block under a name."""

    def __init__(self, timings: dict[str, float], name: str) -> None:
        self.timings, self.name = timings, name

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self.timings[self.name] = time.monotonic() - self.started
        if exc[0] is None:
            console.print(f"{self.name}: {seconds(self.timings[self.name])}")
