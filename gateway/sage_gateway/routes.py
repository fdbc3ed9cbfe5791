"""The allow-list of paths: nothing else of an engine can be reached through the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from sage_prefect.control_plane.events import Kind


@dataclass(frozen=True, slots=True)
class InferenceRoute:
    """A POST route that goes to an engine.

    Attributes:
        label: name in metrics.
        upstream: path below the engine's base URL.
        required: the field besides ``model`` that it cannot do without.
        may_stream: whether ``stream: true`` has a meaning.
    """

    label: str
    kind: Kind
    upstream: str
    required: str
    may_stream: bool = True


INFERENCE_ROUTES = {
    "/v1/chat/completions": InferenceRoute("chat", "chat", "/chat/completions", "messages"),
    "/v1/completions": InferenceRoute("completions", "completion", "/completions", "prompt"),
    "/v1/embeddings": InferenceRoute(
        "embeddings", "embedding", "/embeddings", "input", may_stream=False
    ),
}
