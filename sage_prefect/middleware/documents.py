"""Files that are documents: one row per document, or per page of a PDF."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from sage_prefect.common.errors import RecordError
from sage_prefect.libs.extract.decoding import NotTextError, decode
from sage_prefect.libs.extract.html import html_text
from sage_prefect.libs.extract.markdown import markdown_text
from sage_prefect.libs.extract.pdf import PdfError, pdf_pages
from sage_prefect.libs.extract.rest import rest_text

#: Suffixes of documents that a folder is searched for.
DOCUMENTS = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".html", ".htm", ".pdf"})

SCHEMA = pa.schema([("source", pa.string()), ("title", pa.string()), ("text", pa.string())])


def read_document(path: Path, label: str, encoding: str | None) -> Iterator[pa.RecordBatch]:
    """Rows ``source``, ``title``, ``text`` of one file, by its suffix; unknown ones are plain text.

    Raises:
        RecordError: it is empty, binary, damaged, or holds no text; names the file.
    """
    data = read_bytes(path)
    rows: list[tuple[str, str, str]]
    if path.suffix.lower() == ".pdf":
        rows = _pages(path, label, data)
    else:
        title, text = _title_and_text(path, data, encoding)
        if not text.strip():
            raise RecordError(f"{path} holds no text.", hint="Leave it out, or set it aside.")
        rows = [(label, title or path.stem, text)]
    yield pa.RecordBatch.from_arrays(
        [pa.array(values, pa.string()) for values in zip(*rows, strict=True)], schema=SCHEMA
    )


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        RecordError: it cannot be read, or is empty.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}.") from error
    if not data:
        raise RecordError(f"{path} is empty.", hint="Leave it out, or set it aside.")
    return data


def _title_and_text(path: Path, data: bytes, encoding: str | None) -> tuple[str, str]:
    suffix = path.suffix.lower()
    markup = suffix in (".html", ".htm")
    try:
        text = decode(data, encoding)
    except NotTextError as error:
        # A document may declare an encoding that we would not guess.
        if markup and encoding is None and b"charset" in data[:4096].lower():
            return html_text(data)
        raise RecordError(
            f"{path} is no text that can be read: {error}.",
            hint='Leave it out, give encoding=, or use on_error="dead_letter" on the source.',
        ) from error
    if markup:
        # A declared charset wins over our guess, unless the caller says otherwise.
        return html_text(data if encoding is None else text)
    if suffix in (".md", ".markdown"):
        return markdown_text(text)
    if suffix == ".rst":
        return rest_text(text)
    return "", text


def _pages(path: Path, label: str, data: bytes) -> list[tuple[str, str, str]]:
    try:
        title, pages = pdf_pages(data)
    except PdfError as error:
        raise RecordError(f"{path} is a PDF that cannot be read: {error}.") from error
    rows = [
        (f"{label}#page={number}", title or path.stem, text)
        for number, text in enumerate(pages, start=1)
        if text
    ]
    if not rows:
        raise RecordError(
            f"{path} has {len(pages)} page(s) without text: it may be scanned.",
            hint="Run a text recognition over it first.",
        )
    return rows
