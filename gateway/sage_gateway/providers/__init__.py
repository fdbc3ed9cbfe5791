"""Providers that do not speak OpenAI's protocol, through the litellm library.

The library lives in a process of its own (``server``), which the gateway starts when a deployment
needs it (``bridge``) and speaks OpenAI's protocol to: scheduling, retries, streams and cancellation
are then those of any engine, and neither its import, its memory nor its crash is the gateway's.
"""
