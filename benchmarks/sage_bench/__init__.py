"""L5: the benchmark harness behind ``sage bench``."""
