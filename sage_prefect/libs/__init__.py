"""L3: algorithms without I/O."""
