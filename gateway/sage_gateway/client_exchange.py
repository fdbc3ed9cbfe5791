"""One inference request of a client and its answer, straight on the connection.

The data path's counterpart of :class:`~sage_gateway.reply.Reply`: no ASGI between the request's
bytes and the coroutine that serves it (docs/decisions/0011). The protocol calls the methods named
``on_...``; everything runs in the event loop's thread. Sending waits for slow clients only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from sage_gateway.auth import CallerMemo
from sage_gateway.errors import ClientGone, HttpError
from sage_gateway.inline_task import InlineTask, Waiter, waiter
from sage_gateway.reply import JSON, HeaderList, request_id_of
from sage_gateway.request_body import BodyTimer, body_too_large

if TYPE_CHECKING:
    from sage_gateway.http_protocol import LimitedHttpProtocol
    from sage_gateway.routes import InferenceRoute

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientExchange:
    """A request that came and the answer that goes.

    ``status`` is 0 until something has been sent: as long as it is, another engine may try.

    Args:
        protocol: the connection.
        headers: lower-case names.
        keep_alive: whether the connection may be used again.
        chunks: whether the client understands chunked answers (HTTP/1.1).
        expects_continue: it waits for ``100 Continue`` before it sends the body.
    """

    __slots__ = (
        "_body", "_body_done", "_chunks", "_expects_continue", "_framed", "_loop", "_on_gone",
        "_paused", "_protocol", "_size", "_task", "_turn", "_waiter", "extra", "gone", "headers",
        "keep_alive", "memo", "request_id", "response_complete", "route", "status",
    )  # fmt: skip

    def __init__(
        self,
        protocol: LimitedHttpProtocol,
        route: InferenceRoute,
        headers: dict[bytes, bytes],
        *,
        keep_alive: bool,
        chunks: bool,
        expects_continue: bool,
    ) -> None:
        self.route = route
        self.headers = headers
        self.keep_alive = keep_alive
        self.request_id = request_id_of(headers)
        self.status = 0
        self.memo: CallerMemo | None = None
        """Who sent the same head before on this connection."""
        self.extra: HeaderList | None = None
        """Headers of every answer to this request, errors too."""
        self.response_complete = False
        self.gone = False
        """The connection is lost."""
        self._protocol = protocol
        self._loop = protocol.loop
        self._turn = protocol.turn
        self._chunks = chunks
        self._framed = False
        self._expects_continue = expects_continue
        self._body: list[bytes] = []
        self._size = 0
        self._body_done = False
        self._paused = False
        self._waiter: Waiter | None = None
        self._on_gone: Callable[[], None] | None = None
        self._task: InlineTask | None = None

    # -- its life -------------------------------------------------------------------------

    def begin(self) -> None:
        """Serve it. The coroutine runs until it first waits."""
        self._task = InlineTask(self._turn, self._protocol.serve(self), self._on_served)
        self._task.step()

    def cancel(self) -> None:
        """The time for it is over (shutdown)."""
        if self._task is not None:
            self._task.cancel()

    def cut(self) -> None:
        """Drop the connection: an answer that broke off must not look finished."""
        self._protocol.wire.abort()

    def when_gone(self, call: Callable[[], None]) -> None:
        """Call ``call`` once if the client leaves before its answer is complete."""
        self._on_gone = call

    def _on_served(self) -> None:
        self._task = None
        self._on_gone = None
        if not self.response_complete and not self.gone:
            # Nothing is left that could finish it.
            self.cut()

    # -- the body -------------------------------------------------------------------------

    async def body(self, *, max_bytes: int, timeout_s: float) -> bytes:
        """The whole body.

        Raises:
            HttpError: 413 as soon as it is over ``max_bytes`` (declared, or while it comes in);
                408 when the client is too slow.
            ClientGone: the client left before the end.
        """
        declared = self.headers.get(b"content-length")
        if declared is not None and int(declared) > max_bytes:
            raise body_too_large(max_bytes)
        if not self._body_done:
            await self._rest_of_body(max_bytes, timeout_s)
        if self._size > max_bytes:
            raise body_too_large(max_bytes)
        parts, self._body = self._body, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _rest_of_body(self, max_bytes: int, timeout_s: float) -> None:
        if self._expects_continue and not self._size:
            self._protocol.wire.write(_CONTINUE)
        timer = BodyTimer(self._loop, timeout_s, self._wake)
        try:
            while not self._body_done and self._size <= max_bytes:
                if self.gone:
                    raise ClientGone
                if timer.late(self._size):
                    raise HttpError(
                        408, "The request's body came too slowly.", code="request_timeout"
                    )
                await self._woken()
        finally:
            timer.stop()

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self._size += len(data)
        if self._task is not None:
            self._wake()

    def on_body_end(self) -> None:
        self._body_done = True
        if self._task is not None:
            self._wake()

    # -- the answer -----------------------------------------------------------------------

    def whole(
        self,
        status: int,
        body: bytes,
        content_type: bytes = JSON,
        headers: HeaderList | None = None,
    ) -> None:
        """Send a complete answer."""
        head = self._head(status, content_type, headers, len(body))
        if not self.gone:
            self._protocol.wire.write(head + body)
        self._complete()

    def start(
        self,
        status: int,
        content_type: bytes,
        headers: HeaderList,
        content_length: int | None = None,
    ) -> None:
        """Begin an answer; its head leaves with the first piece of the body."""
        self._framed = content_length is None and self._chunks
        self._body = [self._head(status, content_type, headers, content_length)]

    def more(self, data: bytes) -> bool:
        """Send a piece of the body; False: the client is slow, wait for :meth:`drained` before the
        next one."""
        if self.gone or not data:
            return True
        piece = b"%x\r\n%b\r\n" % (len(data), data) if self._framed else data
        if self._body:
            piece = self._body.pop() + piece
        self._protocol.wire.write(piece)
        return not self._paused

    async def drained(self) -> None:
        """Wait until the client has taken most of what was sent."""
        while self._paused and not self.gone:
            await self._woken()

    def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body."""
        if not self.gone:
            piece = b"%x\r\n%b\r\n" % (len(data), data) if self._framed and data else data
            if self._framed:
                piece += b"0\r\n\r\n"
            if self._body:
                piece = self._body.pop() + piece
            if piece:
                self._protocol.wire.write(piece)
        self._complete()

    def json(self, status: int, content: Any) -> None:
        """Send a JSON answer."""
        self.whole(status, orjson.dumps(content))

    def error(self, error: HttpError) -> None:
        """Send an error in the shape of the route's API."""
        self.whole(error.status, self.route.dialect.error(error), JSON, list(error.headers))

    def _head(
        self,
        status: int,
        content_type: bytes,
        headers: HeaderList | None,
        content_length: int | None,
    ) -> bytes:
        self.status = status
        if content_length is not None:
            framing = b"\r\ncontent-length: %d" % content_length
        elif self._framed:
            framing = b"\r\ntransfer-encoding: chunked"
        else:
            framing = b""
            self.keep_alive = False  # HTTP/1.0: the end of the connection is the end of the body
        head = b"%bcontent-type: %b%b\r\nx-request-id: %b\r\n%b" % (
            STATUS_LINE[status],
            content_type,
            framing,
            self.request_id,
            self._protocol.default_head(),
        )
        for more in (headers, self.extra):
            if more:
                head += b"".join([b"%b: %b\r\n" % header for header in more])
        return head + (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def _complete(self) -> None:
        if self.response_complete:
            return
        self.response_complete = True
        self._on_gone = None
        self._body = []
        if self.gone:
            return
        if not self.keep_alive:
            self._protocol.wire.close()
        self._protocol.on_response_complete()

    # -- for the protocol -----------------------------------------------------------------

    def on_gone(self) -> None:
        """The connection is lost."""
        self.gone = True
        call, self._on_gone = self._on_gone, None
        if call is not None:
            call()
        self._wake()

    def on_pause(self) -> None:
        self._paused = True

    def on_resume(self) -> None:
        self._paused = False
        self._wake()

    def _wake(self) -> None:
        waiting = self._waiter
        if waiting is not None:
            self._waiter = None
            if not waiting.done():
                waiting.set_result(None)

    def _woken(self) -> Waiter:
        """To be awaited: what :meth:`_wake` ends."""
        waiting = self._waiter = waiter(self._turn)
        return waiting
