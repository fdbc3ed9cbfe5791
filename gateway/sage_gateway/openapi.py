"""The OpenAPI description: what FastAPI knows of the management routes, made exact, and the routes
that FastAPI never sees.

Inference bodies belong to the engines: described is what the gateway itself checks, everything else
passes through.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from sage_gateway.request_body import OBJECTS_TOO
from sage_gateway.routes import INFERENCE_ROUTES, InferenceRoute

_JSON = "application/json"
_ERROR = {"$ref": "#/components/schemas/Error"}
_SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "description": "The error object of OpenAI's API.",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "description": "The error object of Anthropic's API.",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_WHAT = {
    400: "The request is wrong; the message names the field.",
    401: "No key, or one that opens nothing.",
    403: "The key may not do this.",
    404: "There is no such thing.",
    405: "Another method is needed.",
    408: "The body came too slowly.",
    413: "The body is too big.",
    415: "The body is not JSON.",
    429: "A limit is reached; `retry-after` says for how long.",
    501: "The engine has no such route, and no translation is faithful.",
    502: "An engine failed.",
    503: "No engine takes it at present; `retry-after` says when to ask again.",
    504: "An engine did not answer in time.",
}
_OF_INFERENCE = (400, 401, 403, 404, 405, 408, 413, 415, 429, 501, 502, 503, 504)


def describe(app: FastAPI) -> None:
    """Have ``app.openapi()`` return the description of the whole gateway."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(_description(app))
        return made

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _description(app: FastAPI) -> dict[str, Any]:
    whole = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = whole["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)  # bad fields are answered with 400
    components["schemas"] |= _SCHEMAS
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    whole["security"] = [{"key": []}]
    for path, methods in whole["paths"].items():
        for operation in methods.values():
            operation["tags"] = ["management"]
            operation["responses"].pop("422", None)
            operation["responses"] |= _errors(_of_management(path, operation))
    paths = {path: {"post": _inference(route)} for path, route in INFERENCE_ROUTES.items()}
    whole["paths"] = paths | _READABLE | whole["paths"]
    return whole


def _of_management(path: str, operation: dict[str, Any]) -> Iterable[int]:
    yield from (401, 403, 405)
    if "requestBody" in operation or path.endswith("/reload"):
        yield from (400, 413)
    if "{" in path or path.endswith("/keys"):
        yield 404
    if "/tenants" in path or "/keys" in path:
        yield 503


def _errors(statuses: Iterable[int], schema: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {_JSON: {"schema": schema or _ERROR}}
    return {str(s): {"description": _WHAT[s], "content": content} for s in sorted(statuses)}


def _inference(route: InferenceRoute) -> dict[str, Any]:
    answer: dict[str, Any] = {_JSON: {"schema": {"type": "object"}}}
    properties: dict[str, Any] = {
        "model": {"type": "string", "minLength": 1, "maxLength": 1024},
        **{name: _field(name) for name in route.required},
    }
    if route.may_stream:
        answer["text/event-stream"] = {}
        properties["stream"] = {
            "type": ["boolean", "null"],
            "description": "`true`: server-sent events.",
        }
        properties["stream_options"] = {"type": ["object", "null"]}
    body: dict[str, Any] = {
        "type": "object",
        "required": ["model"],
        "properties": properties,
        "anyOf": [{"required": [name]} for name in route.required],
        "description": "Further fields go to the engine as they are.",
    }
    is_anthropic = route.path.startswith("/v1/messages")
    schema = {"$ref": "#/components/schemas/AnthropicError"} if is_anthropic else _ERROR
    return {
        "tags": ["inference"],
        "summary": route.path.rsplit("/v1/", 1)[-1].replace("/", " ").replace("_", " ").strip(),
        "operationId": f"inference_{route.label}",
        "requestBody": {"required": True, "content": {_JSON: {"schema": body}}},
        "responses": {
            "200": {"description": "The engine's answer.", "content": answer},
            **_errors(_OF_INFERENCE, schema),
            "default": {
                "description": "The engine's own error, in the API's shape.",
                "content": {_JSON: {"schema": schema}},
            },
        },
    }


def _field(name: str) -> dict[str, Any]:
    """As :func:`sage_gateway.request_body.parse_body` checks it."""
    if name == "messages":
        return {"type": "array", "minItems": 1}
    return {"type": ["string", "array", "object"] if name in OBJECTS_TOO else ["string", "array"]}


def _read(summary: str, *, errors: Iterable[int], content: str = _JSON, **more: Any) -> Any:
    schema = {"type": "object"} if content == _JSON else {"type": "string"}
    return {
        "get": {
            "tags": ["inference" if "model" in summary else "operation"],
            "summary": summary,
            "responses": {
                "200": {"description": "It is so.", "content": {content: {"schema": schema}}},
                **_errors((*errors, 405)),
            },
            **more,
        }
    }


_NAME = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_READABLE: dict[str, Any] = {
    "/v1/models": _read("models that the key may use", errors=(401,)),
    "/v1/models/{id}": _read("one model", errors=(401, 404), parameters=[_NAME]),
    "/health": _read("the process answers", errors=(), security=[]),
    "/ready": _read("some engine takes requests", errors=(503,), security=[]),
    "/metrics": _read(
        "Prometheus metrics; off loopback with the master key",
        errors=(401, 403),
        content="text/plain",
        security=[{}, {"key": []}],
    ),
}
