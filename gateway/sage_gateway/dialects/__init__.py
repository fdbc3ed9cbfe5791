"""The HTTP APIs that clients speak, and their translation into what an engine speaks.

Pure functions and small state machines over parsed JSON and stream events; no I/O, no clock.
"""
