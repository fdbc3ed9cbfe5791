"""L1: the inference protocol's types and the client that speaks it."""
