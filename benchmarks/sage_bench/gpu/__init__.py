"""What a GPU machine can tell: step times of LLM shapes, service times of embedding models."""
