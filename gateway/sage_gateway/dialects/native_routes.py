"""Which routes the servers behind the drivers have of their own."""

from __future__ import annotations

EVERYWHERE = frozenset({"chat", "completions", "embeddings"})
"""What the OpenAI protocol means to every driver."""

# llama.cpp's own /v1/responses and /v1/messages are left aside (measured on its build b11549): the
# events of the first have no numbers and indexes, and say "completed" of an answer that was cut;
# the second repeats the beginning that the client gave; and neither notices, unless it streams,
# that the client has gone.
_OWN = {
    "vllm": frozenset(
        {"responses", "messages", "count_tokens", "rerank", "score", "tokenize", "detokenize"}
    ),
    "llamacpp": frozenset({"count_tokens", "rerank"}),
    "sentence-transformers": frozenset({"rerank", "score"}),
    # A server of mode "rerank" reranks, whatever it is.
    "openai": frozenset({"rerank"}),
}

ROUTES = EVERYWHERE.union(*_OWN.values())
"""Names that ``model_info.routes`` may hold."""


def own_routes(driver: str, declared: frozenset[str] = frozenset()) -> frozenset[str]:
    """Labels of the routes that such an engine gets in the client's own bytes.

    Args:
        driver: of the engine; an unknown one speaks the OpenAI protocol.
        declared: what the engine's configuration adds (``model_info.routes``).
    """
    return EVERYWHERE | _OWN.get(driver, _OWN["openai"]) | declared
