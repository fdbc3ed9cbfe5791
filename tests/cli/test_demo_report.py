"""The figures that ``sage demo`` prints."""

from __future__ import annotations

import pytest

from sage_prefect.cli import demo as command
from sage_prefect.cli.demo_report import cites_expected, figures, quantiles, show, write
from sage_prefect.common.errors import SettingsError
from sage_prefect.kernel.report import OperatorReport, RunReport, StageReport
from sage_prefect.kernel.sink import Committed


def report(name: str, rows: int, seconds: float, reused: int = 0) -> RunReport:
    stages = [
        StageReport(0, "read+embed", n, [OperatorReport("embed", rows, rows, 0, 2.0 + n)], 3.0)
        for n in range(2)
    ]
    return RunReport(name, "run", seconds, stages, Committed(rows), 2, reused)


ROWS = [
    {
        "question": "How?",
        "answer": "So.",
        "sources": ["a", "b"],
        "expected": ["b"],
        "answer_completion_tokens": 10,
        "answer_latency_ms": 1000.0,
    },
    {
        "question": "Why [not]?",
        "answer": "Thus.",
        "sources": ["c"],
        "expected": ["d"],
        "answer_completion_tokens": 30,
        "answer_latency_ms": 3000.0,
    },
]


def test_totals():
    facts = figures(report("ingest", 5000, 50.0), report("answer", 2, 8.0), ROWS, {"ingest": 51.0})
    assert facts["chunks_per_s"] == 100
    assert facts["tokens"] == 40
    assert facts["tokens_per_s"] == 5
    assert (facts["right_source_cited"], facts["judged"]) == (1, 2)
    assert facts["answer_ms"] == {"p50": 3000.0, "p95": 3000.0}
    assert facts["steps"][0]["operators"]["embed"]["seconds"] == 5.0


def test_a_reused_ingest_has_no_rate():
    facts = figures(report("ingest", 5000, 0.1, reused=2), report("answer", 2, 8.0), ROWS, {})
    assert facts["chunks_per_s"] is None
    assert facts["ingest_reused"] == "2/2"


def test_own_questions_are_not_judged():
    rows = [{**row, "expected": None} for row in ROWS]
    facts = figures(report("ingest", 1, 1.0), report("answer", 2, 8.0), rows, {})
    assert facts["right_source_cited"] is None


def test_cited_means_any_acceptable_source():
    assert cites_expected(ROWS[0])
    assert not cites_expected(ROWS[1])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], None), ([None], None), ([5.0], {"p50": 5.0, "p95": 5.0})],
)
def test_quantiles(values, expected):
    assert quantiles(values) == expected


def test_what_is_shown_and_written(capsys, tmp_path, sage_home):
    facts = figures(report("ingest", 5000, 50.0), report("answer", 2, 8.0), ROWS, {"ingest": 51.0})
    show(ROWS, facts)
    shown = capsys.readouterr().out
    assert "Why [not]?" in shown
    assert "chunks indexed   5000 (100/s)" in shown
    assert "right source     1 of 2 questions" in shown
    write(tmp_path / "out.json", ROWS, facts)
    assert '"tokens": 40' in (tmp_path / "out.json").read_text()


def test_questions_come_from_one_place(tmp_path):
    with pytest.raises(SettingsError, match="both given"):
        command._questions(["a"], tmp_path / "q.jsonl", own_docs=False)
    with pytest.raises(SettingsError, match="no question"):
        command._questions(None, None, own_docs=True)
    assert command._questions(["a"], None, own_docs=True) == [{"question": "a"}]


def test_an_index_per_set_of_documents(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert command._index_name([]) == "python-docs"
    assert command._index_name([one]) == command._index_name([one]) != command._index_name([two])
