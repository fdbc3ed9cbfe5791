"""L1: the scheduler core: pure, synchronous, no I/O, no clock."""
