"""Operators over whole partitions: aggregate, join, sort, top_k, sample, deduplicate, windows.

They are reached through :class:`~sage_prefect.kernel.pipeline.Pipeline`'s methods, which put the
exchange that each needs before it.
"""
