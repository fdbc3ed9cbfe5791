"""Readers of public trace formats: what they take, and what they say of bad rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_bench.workloads.client_request import Traffic
from sage_bench.workloads.traces import TraceFormat, read_trace, trace_requests
from sage_prefect.common.errors import BenchmarkError, UnknownNameError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:16:00,10,0
"""
MOONCAKE = (
    '{"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 7]}\n\n'
    '{"timestamp": 4000, "input_length": 600, "output_length": 6, "hash_ids": [0]}\n'
)
BURST = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total,Log
5,s1,1.0,ChatGPT,472,18,490,Conversation log
45,s2,1.0,ChatGPT,1087,0,1087,Conversation log
118,,1.0,GPT-4,417.0,276,693,API log
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "trace"
    file.write_text(text, encoding="utf-8")
    return file


def test_azure_rows_are_sorted_and_start_at_zero(tmp_path: Path) -> None:
    rows = list(read_trace(write(tmp_path, AZURE), "azure"))
    assert [(r.prompt, r.output) for r in rows] == [(374, 44), (396, 109), (10, 1)]
    assert [r.at for r in rows] == pytest.approx([0.0, 4.314579, 13.31941], abs=1e-5)


def test_mooncake_blocks_become_ours(tmp_path: Path) -> None:
    file = write(tmp_path, MOONCAKE)
    rows = list(read_trace(file, "mooncake"))
    assert [r.at for r in rows] == [0.0, 3.0]
    first, second = trace_requests(file, "mooncake", Traffic("t", "m"), speed=3.0, start_s=2.0)
    assert second.at == pytest.approx(3.0)
    assert len(first.chain) == 16
    assert len(second.chain) == 8
    assert first.chain[:8] == second.chain


def test_burstgpt_failures_are_left_out(tmp_path: Path) -> None:
    rows = list(read_trace(write(tmp_path, BURST), "burstgpt"))
    assert [(r.at, r.prompt, r.output, r.session) for r in rows] == [
        (0.0, 472, 18, "s1"),
        (113.0, 417, 276, None),
    ]


@pytest.mark.parametrize(
    ("format", "text", "says"),
    [
        ("azure", AZURE.replace("374", "many"), "row 3: .* ContextTokens 'many'"),
        ("azure", AZURE.replace("2023-11-16 18:16:00", "noon"), "TIMESTAMP 'noon'; expected"),
        ("azure", AZURE.replace("ContextTokens", "Context"), "lacks the column.* ContextTokens"),
        ("azure", AZURE.splitlines()[0], "holds no requests"),
        ("mooncake", MOONCAKE.replace('"hash_ids": [0]', '"hash": [0]'), "row 3: .* hash_ids"),
        ("mooncake", "not json\n", "row 1: not json is no request"),
        ("mooncake", MOONCAKE.replace("600", "-600"), "input_length '-600'"),
        ("burstgpt", BURST.replace("\n45,", "\nlater,"), "Timestamp 'later'"),
    ],
)
def test_bad_rows_name_themselves(
    tmp_path: Path, format: TraceFormat, text: str, says: str
) -> None:
    with pytest.raises(BenchmarkError, match=says):
        list(read_trace(write(tmp_path, text), format))


def test_missing_files_and_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot read the trace"):
        read_trace(tmp_path / "none", "azure")
    with pytest.raises(UnknownNameError, match="azure"):
        read_trace(tmp_path / "none", "azur")  # type: ignore[arg-type]
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\xff\xff\xff")
    with pytest.raises(BenchmarkError, match="is not text"):
        read_trace(tmp_path / "packed", "azure")


@given(st.text(max_size=200), st.sampled_from(["azure", "mooncake", "burstgpt"]))
def test_any_text_is_rows_or_a_benchmark_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, format: TraceFormat
) -> None:
    file = tmp_path_factory.mktemp("t") / "trace"
    file.write_text(text, encoding="utf-8")
    try:
        rows = list(read_trace(file, format))
    except BenchmarkError:
        return
    assert rows
