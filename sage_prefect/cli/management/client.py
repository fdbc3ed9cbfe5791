"""A running gateway's management API, for commands: where it is, with which key, what it says."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from sage_prefect.common.errors import ServiceError, SettingsError

URL_HELP = "The gateway; none: the one that runs here, else SAGE_BASE_URL, else port 8888."
Url = Annotated[str | None, typer.Option("--url", help=URL_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the API's own answer.")]
_TIMEOUT_S = 30.0


class ManagementClient:
    """Calls the API with the master key.

    Args:
        url: of the gateway, with or without ``/v1``; None: see :data:`URL_HELP`.

    Raises:
        SettingsError: there is no master key.
    """

    def __init__(self, url: str | None = None) -> None:
        from sage_prefect.common.keys import key_file, read_master_key

        self._base = _base_url(url)
        key = read_master_key()
        if key is None:
            raise SettingsError(
                "there is no master key.",
                hint=f"Set SAGE_MASTER_KEY, or put the key into {key_file()} (mode 0600).",
            )
        self._headers = {"Authorization": f"Bearer {key}"}

    def get(self, *path: str, **query: str) -> Any:
        """GET a route; ``path`` is below ``/v1/management``, part by part."""
        return self._call("GET", path, None, query)

    def post(self, *path: str, body: Any = None) -> Any:
        """POST to a route."""
        return self._call("POST", path, body)

    def put(self, *path: str, body: Any = None) -> Any:
        """PUT to a route."""
        return self._call("PUT", path, body)

    def delete(self, *path: str) -> Any:
        """DELETE a thing."""
        return self._call("DELETE", path, None)

    def _call(
        self, method: str, path: tuple[str, ...], body: Any, query: dict[str, str] | None = None
    ) -> Any:
        """The answer's JSON.

        Raises:
            ServiceError: no answer, or an error, in the gateway's own words.
        """
        from sage_prefect.platform.http_request import RequestError, request

        # Names of engines may hold slashes; they are part of the path there.
        target = "/".join(quote(part, safe="/:@") for part in ("v1", "management", *path))
        url = f"{self._base}/{target}" + (f"?{urlencode(query)}" if query else "")
        content = None if body is None else json.dumps(body).encode()
        try:
            answer = asyncio.run(
                request(method, url, headers=self._headers, body=content, timeout_s=_TIMEOUT_S)
            )
        except RequestError as error:
            raise ServiceError(
                f"the gateway at {self._base} does not answer: {error}.",
                hint="Is it running? `sage status` shows; --url names another one.",
            ) from error
        try:
            said = json.loads(answer.body)
        except ValueError:
            said = {}
        if answer.status < 400:
            return said
        error_object = said.get("error") if isinstance(said, dict) else None
        message = error_object.get("message") if isinstance(error_object, dict) else None
        hints = {
            401: "It runs with another master key than ours: set SAGE_MASTER_KEY.",
            403: "SAGE_MASTER_KEY holds a tenant's key.",
        }
        raise ServiceError(
            f"{message or f'the gateway at {self._base} answered with status {answer.status}.'}",
            hint=hints.get(answer.status),
        )


def print_json(content: Any) -> None:
    """As the API says it, indented."""
    typer.echo(json.dumps(content, indent=2))


def _base_url(url: str | None) -> str:
    from sage_prefect.common import endpoints
    from sage_prefect.common.ports import SagePorts

    found = url or endpoints.lookup("gateway") or os.environ.get("SAGE_BASE_URL")
    if not found:
        port = os.environ.get(SagePorts.GATEWAY.variable) or SagePorts.GATEWAY.value
        found = f"http://127.0.0.1:{port}"
    if not found.startswith(("http://", "https://")):
        raise SettingsError(
            f"the gateway's URL {found!r} is not an http or https URL.",
            hint="Give one such as --url http://127.0.0.1:8888.",
        )
    return found.rstrip("/").removesuffix("/v1")
