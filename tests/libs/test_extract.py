from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.libs.extract.decoding import NotTextError, decode
from sage_prefect.libs.extract.html import html_text
from sage_prefect.libs.extract.markdown import markdown_text
from sage_prefect.libs.extract.pdf import PdfError, pdf_pages
from sage_prefect.libs.extract.rest import rest_text

# -- encodings ----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@given(text=st.text(st.characters(exclude_characters="\r\0\ufeff", exclude_categories=["Cs"])))
def test_unicode_round_trip(encoding: str, text: str) -> None:
    data = text.encode(encoding)
    if encoding == "utf-8" and data.startswith((b"%PDF-", b"GIF8", b"PAR1", b"PK\x03\x04")):
        return
    assert decode(data) == text


def test_western_text_of_one_byte_per_character() -> None:
    text = "Größe und Maß – “quoted” text, as older files have it. "
    assert decode(text.encode("cp1252")) == text
    assert decode("é\x81 text of plain words".encode("latin-1")) == "é\x81 text of plain words"


def test_line_ends_are_unified() -> None:
    assert decode(b"a\r\nb\rc\n") == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x89PNG\r\n\x1a\n....", "PNG"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"PK\x03\x04....", "ZIP"),
        (b"abc\x00def", "null byte at 3"),
        (bytes(range(1, 256)) * 8, "binary"),
        ("Привет мир, это текст".encode("cp1251"), "binary"),
    ],
)
def test_binary_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(NotTextError, match=why):
        decode(data)


def test_a_given_encoding_is_kept_to() -> None:
    assert decode("Привет".encode("cp1251"), "cp1251") == "Привет"
    with pytest.raises(NotTextError, match=r"byte 0 \(0xff\) is not utf-8"):
        decode(b"\xff", "utf-8")
    with pytest.raises(NotTextError, match="no encoding 'nope'"):
        decode(b"x", "nope")


# -- Markdown -----------------------------------------------------------------------------


def test_markdown() -> None:
    title, text = markdown_text(
        "---\ntitle: 'The Guide'\ntags: x\n---\n<!-- hidden -->\n# Start\n"
        "See [the docs](http://x.y/z) and [more][ref] ![logo](a.png).\n\n"
        "```python\nx = [a](b)  # stays\n```\n\n[ref]: http://gone\n<br/>End\n"
    )
    assert title == "The Guide"
    assert "See the docs and more logo." in text
    assert "x = [a](b)  # stays" in text
    assert all(gone not in text for gone in ("hidden", "http", "<br/>", "tags"))


def test_markdown_title_is_the_first_heading() -> None:
    assert markdown_text("text\n\n## Here\n")[0] == "Here"
    assert markdown_text("just text")[0] == ""


@given(st.text(alphabet="[]()`~<>!-\n a", max_size=400))
def test_markdown_takes_anything(text: str) -> None:
    markdown_text(text)


# -- reStructuredText ---------------------------------------------------------------------


def test_rest() -> None:
    title, text = rest_text(
        ".. _label:\n\nThe Title\n=========\n\nUse :func:`~os.path.join` or :ref:`this <label>`,\n"
        "``code`` and `Site <http://x>`_.\n\n.. function:: open(file)\n   :module: io\n\n"
        "   Opens.\n\n.. code-block:: python\n\n   x = 1\n\n.. note:: Mind it.\n"
    )
    assert title == "The Title"
    for shown in ("Use join or this,", "code and Site.", "function: open(file)", "Opens.", "x = 1"):
        assert shown in text
    assert "note: Mind it." in text
    for gone in ("_label", ":module:", "code-block", "http"):
        assert gone not in text


@given(st.text(alphabet=":`.<>_~| \na", max_size=400))
def test_rest_takes_anything(text: str) -> None:
    rest_text(text)


# -- HTML ---------------------------------------------------------------------------------


def test_html() -> None:
    title, text = html_text(
        "<!doctype html><html><head><title>The\n Title</title><style>a{}</style></head><body>"
        "<script>var x</script><!-- c --><h2>Part</h2><p>One <b>bold</b>\n word.</p>"
        "<pre>keep\n  this</pre><ul><li>a</li><li>b</li></ul>"
        "<table><tr><td>1</td><td>2</td></tr></table></body></html>"
    )
    assert title == "The Title"
    assert "## Part\n\nOne bold word." in text
    assert "keep\n  this" in text
    assert "- a\n\n- b" in text or "- a\n- b" in text
    assert "1 2" in text
    assert all(gone not in text for gone in ("var x", "a{}", "doctype", " c "))


def test_html_declares_its_encoding() -> None:
    data = '<meta charset="shift_jis"><p>日本語</p>'.encode("shift_jis")
    assert html_text(data) == ("", "日本語")


def test_html_may_nest_deeply() -> None:
    assert html_text("<div>" * 3000 + "deep" + "</div>" * 3000)[1] == "deep"


# -- PDF ----------------------------------------------------------------------------------


def pdf(*pages: str, password: str | None = None) -> bytes:
    """A small PDF with one line of text per page."""
    import pypdf
    from pypdf.generic import DictionaryObject, NameObject, StreamObject

    writer = pypdf.PdfWriter()
    for text in pages:
        page = writer.add_blank_page(200, 200)
        font = DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            }
        )
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
        content = StreamObject()
        content.set_data(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode("ascii"))
        page[NameObject("/Contents")] = writer._add_object(content)
    writer.add_metadata({"/Title": "A paper"})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_pdf() -> None:
    assert pdf_pages(pdf("Hello page one", "", "Third")) == (
        "A paper",
        ["Hello page one", "", "Third"],
    )


def test_pdf_with_a_password() -> None:
    with pytest.raises(PdfError, match="password"):
        pdf_pages(pdf("secret", password="x"))


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7", b"%PDF-1.7\ntrailer<<>>", b"\x00" * 100])
def test_damaged_pdf(data: bytes) -> None:
    with pytest.raises(PdfError, match=r"damaged|cannot be read"):
        pdf_pages(data)
