"""L6: the standalone OpenAI-compatible gateway."""
