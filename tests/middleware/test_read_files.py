from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_prefect import Pipeline
from sage_prefect.common.errors import (
    EmptySourceError,
    GraphError,
    MissingColumnError,
    OperatorError,
    RecordError,
)
from sage_prefect.middleware import Chunk, ReadFiles

# PyArrow's CSV reader opens, once per process, a pipe through which Ctrl-C reaches it.
pyarrow.csv.read_csv(io.BytesIO(b"a\n1\n"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(source: ReadFiles) -> list[dict[str, Any]]:
    return [
        row for part in source.parts() for batch in source.read(part) for row in batch.to_pylist()
    ]


def failure(source: ReadFiles) -> str:
    with pytest.raises(RecordError) as caught:
        rows(source)
    return str(caught.value)


# -- which files --------------------------------------------------------------------------


def test_a_folder_means_all_supported_files_below_it(folder: Path) -> None:
    for name in ("b.md", "a.txt", "sub/c.rst", ".hidden.md", ".git/x.md", "d.py", "e.html"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("<p>text</p>")
    assert [r["source"] for r in rows(ReadFiles("."))] == ["a.txt", "b.md", "e.html", "sub/c.rst"]


def test_globs_lists_and_each_file_once(folder: Path) -> None:
    for name in ("x/a.md", "x/y/b.md", "c.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    assert [r["source"] for r in rows(ReadFiles("**/*.md"))] == ["x/a.md", "x/y/b.md"]
    found = rows(ReadFiles(["c.py", "x/a.md", "**/*.md", str(folder / "c.py")]))
    assert [r["source"] for r in found] == ["c.py", "x/a.md", "x/y/b.md"]


def test_a_name_with_brackets_is_a_name(folder: Path) -> None:
    (folder / "a[1].txt").write_text("text")
    assert [r["source"] for r in rows(ReadFiles("a[1].txt"))] == ["a[1].txt"]


def test_paths_elsewhere_stay_absolute(folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other") / "a.txt"
    other.write_text("text")
    assert rows(ReadFiles(other))[0]["source"] == other.as_posix()


def test_no_match_names_pattern_and_working_directory(folder: Path) -> None:
    pipeline = Pipeline("p").source(ReadFiles("docs/*.md")).map(Chunk()).sink()
    with pytest.raises(EmptySourceError, match=r"'docs/\*\.md'") as caught:
        pipeline.run()
    assert str(folder) in str(caught.value)
    (folder / "empty").mkdir()
    with pytest.raises(EmptySourceError, match="'empty'"):
        ReadFiles("empty").parts()
    with pytest.raises(GraphError, match="names no files"):
        ReadFiles([])


def test_keys_change_with_the_content(folder: Path) -> None:
    file = folder / "a.txt"
    file.write_text("one")
    status = file.stat()

    def key(**options: Any) -> str:
        return ReadFiles("a.txt", **options).parts()[0].key

    plain, hashed = key(), key(content_hash=True)
    assert key() == plain
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10))
    assert key() != plain
    assert key(content_hash=True) == hashed
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert key(content_hash=True) != hashed


# -- documents ----------------------------------------------------------------------------


def test_documents(folder: Path) -> None:
    (folder / "a.md").write_text("# The Guide\n\nSee [this](http://x).\n")
    (folder / "b.rst").write_text("Title\n=====\n\nUse :func:`open`.\n")
    (folder / "c.html").write_text("<title>Page</title><script>no</script><p>Hello</p>")
    (folder / "d.txt").write_bytes("Grüße".encode("utf-16"))
    (folder / "e.txt").write_bytes("Grüße aus Köln, wie früher.".encode("latin-1"))
    found = {row["source"]: row for row in rows(ReadFiles("."))}
    assert found["a.md"]["title"] == "The Guide"
    assert found["a.md"]["text"] == "# The Guide\n\nSee this."
    assert found["b.rst"]["title"] == "Title"
    assert found["c.html"] == {"source": "c.html", "title": "Page", "text": "Hello"}
    assert found["d.txt"]["text"] == "Grüße"
    assert found["d.txt"]["title"] == "d"
    assert found["e.txt"]["text"] == "Grüße aus Köln, wie früher."
    assert ReadFiles(".").output_columns() == ("source", "title", "text")


def pdf(*lines: str) -> bytes:
    """A PDF with one line of text per page, written by hand."""
    pages = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(lines)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{pages}] /Count {len(lines)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, line in enumerate(lines):
        content = f"BT /F1 12 Tf 20 100 Td ({line}) Tj ET"
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Resources << /Font << /F1 3 0 R "
            f">> >> /Contents {5 + 2 * number} 0 R >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    made, offsets = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(made))
        made += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    tail = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    return made + f"{tail}startxref\n{len(made)}\n%%EOF\n".encode()


def test_a_pdf_is_a_row_per_page_with_text(folder: Path) -> None:
    import pypdf

    (folder / "paper.pdf").write_bytes(pdf("First page", "", "Third page"))
    assert rows(ReadFiles("paper.pdf")) == [
        {"source": "paper.pdf#page=1", "title": "paper", "text": "First page"},
        {"source": "paper.pdf#page=3", "title": "paper", "text": "Third page"},
    ]
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    with (folder / "scan.pdf").open("wb") as file:
        writer.write(file)
    assert "without text: it may be scanned" in failure(ReadFiles("scan.pdf"))
    (folder / "bad.pdf").write_bytes(b"%PDF-1.7 nothing")
    assert "bad.pdf is a PDF that cannot be read" in failure(ReadFiles("bad.pdf"))


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.html", b"<script>x</script>", "holds no text"),
        ("a.bin", b"\x00\x01\x02", "binary"),
        ("a.md", b"\x89PNG\r\n\x1a\n", "PNG image"),
        ("a.html", b"PK\x03\x04", "ZIP"),
    ],
)
def test_files_that_hold_no_text_are_named(folder: Path, name: str, data: bytes, why: str) -> None:
    (folder / name).write_bytes(data)
    message = failure(ReadFiles(name))
    assert str(folder / name) in message
    assert why in message


def test_an_unreadable_file_is_named(folder: Path) -> None:
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    (folder / "ok.txt").write_text("text")
    assert "gone.txt: No such file" in failure(ReadFiles(["gone.txt", "ok.txt", "*.txt"]))


def test_dead_letters_set_files_aside(folder: Path) -> None:
    (folder / "a.txt").write_text("text")
    (folder / "b.txt").write_bytes(b"\x00")
    (folder / "c.txt").write_text("more")
    pipeline = Pipeline("p").source(ReadFiles("*.txt"), on_error="dead_letter").sink()
    report = pipeline.run()
    assert report.committed.data.column("source").to_pylist() == ["a.txt", "c.txt"]
    assert [letter.part for letter in report.dead_letters] == ["b.txt"]
    assert "b.txt is no text" in report.dead_letters[0].error
    with pytest.raises(OperatorError, match=r"'read-files' failed in partition .*b\.txt"):
        Pipeline("p").source(ReadFiles("*.txt")).sink().run(partitions=3)


def test_a_line_of_millions_of_characters(folder: Path) -> None:
    (folder / "line.md").write_text("word [x](y) " * 300_000)
    report = Pipeline("p").source(ReadFiles("line.md")).map(Chunk()).sink().run()
    assert report.committed.rows > 1000


# -- tables -------------------------------------------------------------------------------


def test_jsonl(folder: Path) -> None:
    (folder / "q.jsonl").write_text('\ufeff{"question": "a"}\n\n{"question": "b", "n": 1}\n')
    source = ReadFiles("q.jsonl")
    assert set(source.output_columns() or ()) == {"question", "n", "source"}
    assert rows(source) == [
        {"question": "a", "n": None, "source": "q.jsonl:1"},
        {"question": "b", "n": 1, "source": "q.jsonl:3"},
    ]
    with pytest.raises(MissingColumnError, match=r"'text'.*question"):
        Pipeline("p").source(source).map(Chunk())


def test_a_column_named_source_is_kept(folder: Path) -> None:
    (folder / "q.jsonl").write_text('{"source": "mine", "text": "x"}\n')
    assert rows(ReadFiles("q.jsonl")) == [{"source": "mine", "text": "x"}]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ('{"a": 1}\n{"a": \n', "q.jsonl, line 2: not JSON"),
        ('{"a": 1}\n\n[1]\n', "q.jsonl, line 3: a JSON list, not an object"),
        ('{"a": 1}\n{"a": "x"}\n', "values of different types"),
        ("\n\n", "has no rows"),
        ("", "is empty"),
    ],
)
def test_broken_jsonl_names_file_and_line(folder: Path, lines: str, why: str) -> None:
    (folder / "q.jsonl").write_text(lines)
    assert why in failure(ReadFiles("q.jsonl"))


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.text(max_size=20), min_size=1, max_size=40),
    rows_per_part=st.integers(1, 50),
    ends=st.booleans(),
)
def test_parts_of_jsonl_are_the_whole(
    tmp_path_factory: Any, values: list[str], rows_per_part: int, ends: bool
) -> None:
    import orjson

    file = tmp_path_factory.mktemp("parts") / "q.jsonl"
    text = b"\n".join(orjson.dumps({"v": value}) for value in values) + b"\n" * ends
    file.write_bytes(text)
    whole = rows(ReadFiles(file))
    source = ReadFiles(file, rows_per_part=rows_per_part)
    assert len(source.parts()) == -(-len(values) // rows_per_part)
    assert rows(source) == whole
    assert [row["v"] for row in whole] == values


def test_parts_of_jsonl_know_their_lines(folder: Path) -> None:
    (folder / "q.jsonl").write_text('{"a": 1}\n' * 5 + "broken\n")
    assert "line 6: not JSON" in failure(ReadFiles("q.jsonl", rows_per_part=2))


def test_csv(folder: Path) -> None:
    (folder / "a.csv").write_text('name,n\nx,1\n"two\nlines",2\n')
    (folder / "b.tsv").write_text("name\tn\ny\t3\n")
    (folder / "c.csv").write_bytes("name,n\nGrüße,1\n".encode("cp1252"))
    source = ReadFiles(["a.csv", "b.tsv", "c.csv"])
    assert source.output_columns() == ("name", "n", "source")
    assert rows(source) == [
        {"name": "x", "n": 1, "source": "a.csv:1"},
        {"name": "two\nlines", "n": 2, "source": "a.csv:2"},
        {"name": "y", "n": 3, "source": "b.tsv:1"},
        {"name": "Grüße", "n": 1, "source": "c.csv:1"},
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "is empty"),
        (b"a,b\n", "has no rows"),
        (b"a,b\n1,2\n3\n", "not readable as CSV"),
        (b"a\x00b", "binary"),
    ],
)
def test_broken_csv(folder: Path, text: bytes, why: str) -> None:
    (folder / "a.csv").write_bytes(text)
    message = failure(ReadFiles("a.csv"))
    assert "a.csv" in message
    assert why in message


def test_parquet(folder: Path) -> None:
    pq.write_table(pa.table({"x": list(range(10))}), folder / "a.parquet", row_group_size=3)
    whole = rows(ReadFiles("a.parquet"))
    assert [row["x"] for row in whole] == list(range(10))
    assert whole[4]["source"] == "a.parquet:5"
    parts = ReadFiles("a.parquet", rows_per_part=4)
    assert len(parts.parts()) == 3
    assert rows(parts) == whole
    assert parts.output_columns() == ("x", "source")
    (folder / "bad.parquet").write_bytes(b"PAR1 nothing")
    assert "bad.parquet: not readable as Parquet" in failure(ReadFiles("bad.parquet"))


def test_columns_that_not_all_files_have_are_not_promised(folder: Path) -> None:
    (folder / "a.md").write_text("text")
    (folder / "b.jsonl").write_text('{"text": "x", "n": 1}\n')
    assert ReadFiles(".").output_columns() == ("source", "text")
    (folder / "c.jsonl").write_text("broken")
    assert ReadFiles("c.jsonl").output_columns() is None
    assert ReadFiles("nothing.md").output_columns() is None


def test_parameters(folder: Path) -> None:
    with pytest.raises(GraphError, match="rows_per_part=0"):
        ReadFiles("x", rows_per_part=0)
    (folder / "a.txt").write_bytes("Привет".encode("cp1251"))
    assert rows(ReadFiles("a.txt", encoding="cp1251"))[0]["text"] == "Привет"
    assert "a.txt is no text" in failure(ReadFiles("a.txt", encoding="utf-8"))
