"""PDF to plain text, page by page."""

from __future__ import annotations

import io
import re

from sage_prefect.common.errors import MissingDependencyError

_HYPHEN = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


class PdfError(ValueError):
    """The PDF cannot be read; the message says why."""


def pdf_pages(data: bytes) -> tuple[str, list[str]]:
    """Title (of its metadata; "" if there is none) and the text of each page.

    A page without text (a picture) is "". Words hyphenated at a line's end are joined.

    Raises:
        PdfError: the file is damaged or needs a password.
        MissingDependencyError: pypdf is not installed.
    """
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ModuleNotFoundError:
        raise MissingDependencyError("pypdf", "documents", "reading PDF") from None
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise PdfError("it needs a password")
        metadata = reader.metadata
        title = str((metadata.title if metadata else "") or "").strip()
        pages = [_HYPHEN.sub("", page.extract_text()).strip() for page in reader.pages]
    except PdfError:
        raise
    except (PyPdfError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        # Damage shows as any of these: pypdf reads what is there and trusts it.
        raise PdfError(f"it is damaged ({type(error).__name__}: {error})") from error
    except (RecursionError, NotImplementedError, OSError) as error:
        raise PdfError(f"it cannot be read ({type(error).__name__}: {error})") from error
    return title, pages
