"""Bytes to text: which encoding, or no text at all."""

from __future__ import annotations

import codecs

_MARKS = (
    # UTF-32's mark begins with UTF-16's: it comes first.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAGIC = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive (or an office document)"),
    (b"\x7fELF", "an executable"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3\x00", "an SQLite database"),
)
# Control characters that occur in text: backspace, tab, line ends, form feed, escape.
_CONTROL = bytes(set(range(32)) - {8, 9, 10, 11, 12, 13, 27})
_SAMPLE = 1 << 16


class NotTextError(ValueError):
    """The bytes are no text; the message says what they look like."""


def decode(data: bytes, encoding: str | None = None) -> str:
    """Text of ``data`` with ``\\n`` line ends.

    With ``encoding=None``: what a byte order mark says, else UTF-8, else Windows-1252 or Latin-1 if
    the bytes look like text of one byte per character.

    Raises:
        NotTextError: they do not, or do not fit ``encoding``.
    """
    chosen = encoding or detect(data)
    try:
        text = data.decode(chosen)
    except UnicodeDecodeError as error:
        raise NotTextError(
            f"byte {error.start} ({data[error.start]:#04x}) is not {chosen}"
        ) from error
    except LookupError as error:
        raise NotTextError(f"there is no encoding {chosen!r}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def detect(data: bytes) -> str:
    """The encoding of ``data``.

    Raises:
        NotTextError: it is binary.
    """
    for magic, what in _MAGIC:
        if data.startswith(magic):
            raise NotTextError(f"it looks like {what}")
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    if b"\x00" in data:
        raise NotTextError(f"it is binary (a null byte at {data.index(0)})")
    try:
        # The incremental decoder checks without keeping a second copy of a large text.
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(data), _SAMPLE):
            decoder.decode(data[start : start + _SAMPLE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return _single_byte(data, error)
    return "utf-8"


def _single_byte(data: bytes, error: UnicodeDecodeError) -> str:
    sample = data[:_SAMPLE]
    controls = len(sample) - len(sample.translate(None, _CONTROL))
    high = sum(byte >= 0x80 for byte in sample)
    if controls or high > len(sample) * 0.3 + 4:
        raise NotTextError("it is binary (neither UTF-8 nor text of one byte per character)")
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"
