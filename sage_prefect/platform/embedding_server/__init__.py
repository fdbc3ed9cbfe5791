"""The embedding server: an OpenAI ``/v1/embeddings`` endpoint over a sentence-transformers model.

Its own process: ``python -m sage_prefect.platform.embedding_server --model all-minilm-l6-v2``.
The modules in the order in which a request passes through them: ``server`` (process, signals),
``app`` (ASGI), ``request`` (checks), ``encoder`` (tokens), ``waiting`` (which texts go together),
``batcher`` (who runs when), ``encoder`` again (vectors), ``response`` (bytes).
"""
