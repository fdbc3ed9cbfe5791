"""Executors turn many queued requests into few calls of an engine."""
