"""Errors as clients see them: OpenAI's body, a fitting status, never a secret."""

from __future__ import annotations

import orjson

from sage_prefect.common.errors import RequestRejected

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    502: "engine_error",
    503: "service_unavailable",
    504: "timeout_error",
}


class HttpError(Exception):
    """Answer the request with this error.

    Args:
        status: HTTP status.
        message: for people: what, where, what to do.
        code: for programs; stable.
        param: the field of the body that is wrong.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers

    @classmethod
    def of(cls, rejected: RequestRejected) -> HttpError:
        """The answer to a request that a library refused."""
        return cls(rejected.status, str(rejected), code=rejected.code)

    def body(self) -> bytes:
        """The JSON body."""
        return error_body(self.status, self.message, code=self.code, param=self.param)


class ClientGone(Exception):  # noqa: N818 - a fact, not a failure
    """The client has closed its connection: there is nobody to answer."""


def error_type(status: int) -> str:
    """OpenAI's ``type`` for a status."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def error_body(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> bytes:
    """``{"error": {"message", "type", "param", "code"}}``."""
    error = {"message": message, "type": error_type(status), "param": param, "code": code}
    return orjson.dumps({"error": error})


def error_event(status: int, message: str, *, code: str | None = None) -> bytes:
    """The last event of a stream that broke off. No ``[DONE]`` follows it."""
    return b"data: " + error_body(status, message, code=code) + b"\n\n"
