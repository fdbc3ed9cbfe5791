"""L3: the pure pipeline kernel: graph, checks, planner, partitions, commit log, local runner."""
