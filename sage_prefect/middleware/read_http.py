"""``ReadHttp``: rows of a JSON API, page by page."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import orjson
import pyarrow as pa

from sage_prefect.common.errors import GraphError, RecordError
from sage_prefect.kernel.operator import rows_to_batch
from sage_prefect.kernel.source import Source, SourcePart

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_ENVIRON = "os.environ/"


class SourceUnavailable(RecordError):  # noqa: N818 - the field's term
    """The API cannot be reached, or is overloaded: a retry may help."""

    retryable = True


class ReadHttp(Source):
    """Read a JSON API with GET. Each object is a row. The next page is where the answer says so:
    at ``next_path`` in its body, else in its ``Link`` header (``rel="next"``, RFC 8288); or, with
    ``page_param``, pages are counted until one is empty.

    A run that is interrupted reads all pages again.

    Args:
        url: of the first page; of several: a list, each a part of its own.
        rows_path: where the rows are in a page (``"data.items"``); "": the page is the list.
        next_path: where the next page's URL is (``"links.next"``).
        page_param: name of the query parameter with the number of the page, from 1.
        params: query parameters of the first page (of each page, with ``page_param``).
        headers: of each request; a value ``os.environ/NAME`` is taken from that variable where the
            request is made.
        max_pages: more pages than this are an error.
        timeout_s: for each page.

    Raises:
        GraphError: an argument cannot work (no URL, two ways of paging).
        RecordError: an answer is an error, not JSON, has no rows at ``rows_path``, pages go in a
            circle or do not end (when it is read). Retryable when the API is down or overloaded.
    """

    name = "read-http"

    def __init__(
        self,
        url: str | Sequence[str],
        rows_path: str = "",
        next_path: str | None = None,
        page_param: str | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        max_pages: int = 10_000,
        timeout_s: float = 30.0,
    ) -> None:
        self.urls = [url] if isinstance(url, str) else list(url)
        for given in self.urls:
            if not given.startswith(("http://", "https://")):
                raise GraphError(
                    f"ReadHttp(url={given!r}) is no URL.", hint="Start it with https://."
                )
        if not self.urls:
            raise GraphError("ReadHttp got no URL.", hint="Give it one.")
        if next_path is not None and page_param is not None:
            raise GraphError(
                "ReadHttp got next_path= and page_param=: two ways of paging.", hint="Give one."
            )
        if max_pages < 1:
            raise GraphError(f"ReadHttp(max_pages={max_pages}) is not positive.")
        self.rows_path = rows_path
        self.next_path = next_path
        self.page_param = page_param
        self.query = dict(params or {})
        self.headers = dict(headers or {})
        self.max_pages = max_pages
        self.timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"ReadHttp({self.urls[0] if len(self.urls) == 1 else self.urls!r})"

    def key_params(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.params.items() if name != "headers"}

    def output_columns(self, columns: Sequence[str] = ()) -> tuple[str, ...] | None:
        return None

    def parts(self) -> Sequence[SourcePart]:
        # What an API answers may differ each time: finished partitions are those of one run.
        run = uuid.uuid4().hex
        return [SourcePart(f"{url}|{run}", url, url, 1000.0) for url in self.urls]

    def read(self, part: SourcePart) -> Iterator[pa.RecordBatch]:
        url: str | None = part.spec
        seen: set[tuple[str, int]] = set()
        with httpx.Client(
            headers=self._headers(), timeout=self.timeout_s, follow_redirects=True
        ) as client:
            number = 1
            while url is not None:
                if len(seen) == self.max_pages:
                    raise RecordError(
                        f"{part.spec}: more than {self.max_pages} pages.", hint="Raise max_pages=."
                    )
                if (url, number) in seen:
                    raise RecordError(f"{part.spec}: page {url} leads back to itself.")
                seen.add((url, number))
                query = dict(self.query) if len(seen) == 1 or self.page_param else {}
                if self.page_param:
                    query[self.page_param] = str(number)
                answer = self._get(client, url, query)
                body = _json(answer)
                rows = self._rows(body, answer)
                if rows:
                    yield rows_to_batch(rows)
                if self.page_param:
                    number += 1
                    url = url if rows else None
                else:
                    url = self._next(body, answer)

    def _headers(self) -> dict[str, str]:
        found = {}
        for name, value in self.headers.items():
            if value.startswith(_ENVIRON):
                variable = value[len(_ENVIRON) :]
                if variable not in os.environ:
                    raise RecordError(
                        f"header {name!r} is to come from the environment variable {variable}, "
                        "which is not set.",
                        hint="Set it on the workers.",
                    )
                value = os.environ[variable]
            found[name] = value
        return found

    def _get(self, client: httpx.Client, url: str, query: dict[str, str]) -> httpx.Response:
        try:
            answer = client.get(url, params=query or None)
        except httpx.TransportError as error:
            raise SourceUnavailable(f"{url}: {type(error).__name__}: {error}.") from error
        if answer.status_code >= 400:
            kind = SourceUnavailable if answer.status_code in _BUSY else RecordError
            raise kind(f"{answer.url}: HTTP {answer.status_code}: {answer.text[:200]!r}.")
        return answer

    def _rows(self, body: Any, answer: httpx.Response) -> list[dict[str, Any]]:
        rows = _at(body, self.rows_path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            found = ", ".join(body) if isinstance(body, dict) else type(body).__name__
            raise RecordError(
                f"{answer.url}: no list of objects at {self.rows_path!r}.",
                hint=f"Set rows_path=. The page has: {found}.",
            )
        return rows

    def _next(self, body: Any, answer: httpx.Response) -> str | None:
        if self.next_path is not None:
            link = _at(body, self.next_path)
        else:
            link = answer.links.get("next", {}).get("url")
        return str(answer.url.join(link)) if isinstance(link, str) and link else None


def _json(answer: httpx.Response) -> Any:
    try:
        return orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"{answer.url}: not JSON: {answer.text[:100]!r}.") from error


def _at(value: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
