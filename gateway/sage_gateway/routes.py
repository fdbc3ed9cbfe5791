"""The allow-list of paths: nothing else of an engine can be reached through the gateway."""

from __future__ import annotations

from dataclasses import dataclass, field

from sage_gateway.dialects.base import Dialect
from sage_gateway.dialects.messages import CountTokensDialect, MessagesDialect
from sage_gateway.dialects.relevance import FIRST, RerankDialect, ScoreDialect
from sage_gateway.dialects.responses import ResponsesDialect
from sage_gateway.dialects.tokens import DetokenizeDialect, TokenizeDialect
from sage_prefect.control_plane.events import Kind


@dataclass(frozen=True, slots=True)
class InferenceRoute:
    """A POST route that goes to an engine.

    Attributes:
        label: name in metrics and in ``model_info.routes``.
        path: what clients call.
        upstream: path below the engine's base URL.
        required: fields of which one must be there, besides ``model``.
        may_stream: whether ``stream: true`` has a meaning.
        dialect: the API: its errors, its streams, and how it is translated.
    """

    label: str
    path: str
    kind: Kind
    upstream: str
    required: tuple[str, ...]
    may_stream: bool = True
    dialect: Dialect = field(default_factory=Dialect)

    @property
    def is_chat(self) -> bool:
        """Whether its streams are those of chat and completions."""
        return self.may_stream and self.dialect.counts_in_stream


_ROUTES = (
    InferenceRoute("chat", "/v1/chat/completions", "chat", "/chat/completions", ("messages",)),
    InferenceRoute("completions", "/v1/completions", "completion", "/completions", ("prompt",)),
    InferenceRoute(
        "embeddings", "/v1/embeddings", "embedding", "/embeddings", ("input",), may_stream=False
    ),
    InferenceRoute(
        "responses", "/v1/responses", "chat", "/responses", ("input",), dialect=ResponsesDialect()
    ),
    InferenceRoute(
        "messages", "/v1/messages", "chat", "/messages", ("messages",), dialect=MessagesDialect()
    ),
    InferenceRoute(
        "count_tokens",
        "/v1/messages/count_tokens",
        "chat",
        "/messages/count_tokens",
        ("messages",),
        may_stream=False,
        dialect=CountTokensDialect(),
    ),
    InferenceRoute(
        "rerank",
        "/v1/rerank",
        "rerank",
        "/rerank",
        ("query",),
        may_stream=False,
        dialect=RerankDialect(),
    ),
    InferenceRoute(
        "score",
        "/v1/score",
        "rerank",
        "/score",
        FIRST,
        may_stream=False,
        dialect=ScoreDialect(),
    ),
    InferenceRoute(
        "tokenize",
        "/tokenize",
        "completion",
        "/tokenize",
        ("prompt", "messages"),
        may_stream=False,
        dialect=TokenizeDialect(),
    ),
    InferenceRoute(
        "detokenize",
        "/detokenize",
        "completion",
        "/detokenize",
        ("tokens",),
        may_stream=False,
        dialect=DetokenizeDialect(),
    ),
)

INFERENCE_ROUTES = {route.path: route for route in _ROUTES}
