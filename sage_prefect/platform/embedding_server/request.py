"""Checks of a ``/v1/embeddings`` body, and what all bodies share.

Pure: bytes in, a typed request or a 4xx out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import orjson

EncodingFormat = Literal["float", "base64"]


class HttpError(Exception):
    """An answer other than 200, in OpenAI's error shape.

    Args:
        status: HTTP status.
        message: what is wrong: the thing, its value, what was expected.
        param: the request field at fault.
        code: a stable identifier for programs.
        retry_after_s: seconds for the ``retry-after`` header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON error body."""
        return orjson.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": _error_type(self.status),
                    "param": self.param,
                    "code": self.code,
                }
            }
        )


@dataclass(frozen=True)
class Limits:
    """What one request may ask.

    Attributes:
        max_inputs: texts.
        max_input_characters: characters of one text; what the model does not read is truncated,
            but must still be tokenised.
        max_body_bytes: length of the body.
    """

    max_inputs: int = 2048
    max_input_characters: int = 1_000_000
    max_body_bytes: int = 16 * 2**20


@dataclass(frozen=True)
class EmbeddingRequest:
    """A checked request. Fields of the body that we do not know are ignored, as vLLM does."""

    model: str
    texts: list[str]
    encoding_format: EncodingFormat


def parse_request(
    body: bytes, *, models: tuple[str, ...], dimension: int, limits: Limits
) -> EmbeddingRequest:
    """Check a body.

    Args:
        models: names under which the model is served.
        dimension: length of its embeddings.

    Raises:
        HttpError: 400 or 404; ``param`` names the field.
    """
    content = load_body(body)
    model = served_model(content, models)
    return EmbeddingRequest(model, _texts(content, limits), _encoding_format(content, dimension))


def load_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        HttpError: 400, it is none.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HttpError(400, f"the body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(content, dict):
        raise invalid(f"the body is {kind_of(content)}, not an object.", None)
    return content


def served_model(content: dict[str, Any], models: tuple[str, ...]) -> str:
    """The model that a request names.

    Raises:
        HttpError: 400, it names none; 404, it is not served here.
    """
    model = content.get("model")
    if not isinstance(model, str):
        raise invalid(f"'model' must be a string, got {kind_of(model)}.", "model")
    if model not in models:
        raise HttpError(
            404,
            f"the model {_short(model)} is not served here. Served: {', '.join(models)}.",
            param="model",
            code="model_not_found",
        )
    return model


def _texts(content: dict[str, Any], limits: Limits) -> list[str]:
    if "input" not in content:
        raise invalid("'input' is missing: give a string or a list of strings.", "input")
    value = content["input"]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise invalid(
            f"'input' must be a string or a list of strings, got {kind_of(value)}.", "input"
        )
    if not texts:
        raise invalid("'input' is an empty list: give at least one string.", "input")
    if len(texts) > limits.max_inputs:
        raise invalid(
            f"'input' has {len(texts)} texts, more than {limits.max_inputs}: split the request.",
            "input",
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            tokens = " Token ids are not supported." if isinstance(text, (int, list)) else ""
            raise invalid(
                f"'input[{index}]' must be a string, got {kind_of(text)}.{tokens}", "input"
            )
        if len(text) > limits.max_input_characters:
            raise invalid(
                f"'input[{index}]' has {len(text)} characters, more than "
                f"{limits.max_input_characters}.",
                "input",
            )
    return cast("list[str]", texts)


def _encoding_format(content: dict[str, Any], dimension: int) -> EncodingFormat:
    # null counts as absent: clients send it for what the user left out.
    dimensions = content.get("dimensions")
    if dimensions is not None and (isinstance(dimensions, bool) or dimensions != dimension):
        raise invalid(
            f"'dimensions' is {_short(dimensions)}, but this model makes {dimension} and cannot "
            "shorten them.",
            "dimensions",
        )
    encoding_format = content.get("encoding_format")
    if encoding_format is None:
        return "float"
    if encoding_format not in ("float", "base64"):
        raise invalid(
            f"'encoding_format' must be 'float' or 'base64', got {_short(encoding_format)}.",
            "encoding_format",
        )
    return cast(EncodingFormat, encoding_format)


def invalid(message: str, param: str | None) -> HttpError:
    """400: a field is not what the API takes."""
    return HttpError(400, message, param=param, code="invalid_value")


def kind_of(value: object) -> str:
    """A JSON value's kind, for messages."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _error_type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 404:
        return "not_found_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
