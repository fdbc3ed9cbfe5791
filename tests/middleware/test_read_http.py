"""Paging over a JSON API; the server is a real one on the loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from sage_prefect import Pipeline
from sage_prefect.common.errors import GraphError, OperatorError
from sage_prefect.middleware import ReadHttp

ROWS = [{"id": number} for number in range(25)]


class Api(BaseHTTPRequestHandler):
    busy = 0
    keys: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        start = int(query.get("start", 0))
        page = ROWS[start : start + 10]
        more = f"{url.path}?start={start + 10}" if start + 10 < len(ROWS) else None
        Api.keys.append(self.headers.get("x-key"))
        if url.path == "/busy" and Api.busy:
            Api.busy -= 1
            return self.answer(503, {"error": "later"})
        if url.path == "/counted":
            number = int(query["page"]) - 1
            return self.answer(200, ROWS[number * 10 : number * 10 + 10])
        if url.path == "/link":
            return self.answer(200, page, {"link": f'<{more}>; rel="next"'} if more else {})
        if url.path == "/circle":
            return self.answer(200, {"data": {"items": page}, "next": self.path})
        if url.path == "/text":
            return self.answer(200, None)
        if url.path == "/gone":
            return self.answer(404, {"error": "no such thing"})
        return self.answer(200, {"data": {"items": page}, "next": more})

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = b"<html>" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def ids(source: ReadHttp, **options: Any) -> list[int]:
    report = Pipeline("p").source(source).sink().run(retry_delay_s=0.0, **options)
    found: list[int] = report.committed.data.column("id").to_pylist()
    return found


def test_three_ways_of_paging(api: str) -> None:
    everything = list(range(25))
    assert ids(ReadHttp(f"{api}/items", "data.items", next_path="next")) == everything
    assert ids(ReadHttp(f"{api}/link")) == everything
    assert ids(ReadHttp(f"{api}/counted", page_param="page")) == everything
    assert ids(ReadHttp(f"{api}/link", params={"start": "20"})) == everything[20:]


def test_several_urls_are_parts(api: str) -> None:
    source = ReadHttp([f"{api}/link?start=20", f"{api}/link?start=10"])
    assert len(source.parts()) == 2
    assert ids(source) == [*range(20, 25), *range(10, 25)]


def test_an_overloaded_api_is_asked_again(api: str) -> None:
    Api.busy = 2
    source = ReadHttp(f"{api}/busy", "data.items", next_path="next")
    assert ids(source, retries=2) == list(range(25))
    Api.busy = 2
    with pytest.raises(OperatorError, match=r"HTTP 503.*later"):
        ids(source, retries=1)
    Api.busy = 0


def test_headers_from_the_environment(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "s3cret")
    source = ReadHttp(f"{api}/link", headers={"x-key": "os.environ/API_KEY"})
    Api.keys.clear()
    ids(source)
    assert Api.keys == ["s3cret"] * 3
    monkeypatch.delenv("API_KEY")
    with pytest.raises(OperatorError, match="variable API_KEY, which is not set"):
        ids(source)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("/gone", {}, "HTTP 404.*no such thing"),
        ("/text", {}, "not JSON: '<html>'"),
        ("/items", {}, r"no list of objects at ''.*The page has: data, next"),
        ("/items", {"rows_path": "data.rows.x"}, "no list of objects at 'data.rows.x'"),
        ("/circle", {"rows_path": "data.items", "next_path": "next"}, "leads back to itself"),
        ("/link", {"max_pages": 2}, "more than 2 pages"),
    ],
)
def test_answers_that_cannot_be_used(api: str, path: str, options: Any, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        ids(ReadHttp(api + path, **options))


def test_nobody_there() -> None:
    with pytest.raises(OperatorError, match="ConnectError") as caught:
        ids(ReadHttp("http://127.0.0.1:1/x"), retries=0)
    assert caught.value.retryable


def test_arguments() -> None:
    for url, options, message in (
        ("ftp://x", {}, "is no URL"),
        ([], {}, "no URL"),
        ("http://x", {"next_path": "a", "page_param": "b"}, "two ways of paging"),
        ("http://x", {"max_pages": 0}, "max_pages=0"),
    ):
        with pytest.raises(GraphError, match=message):
            ReadHttp(url, **options)  # type: ignore[arg-type]
