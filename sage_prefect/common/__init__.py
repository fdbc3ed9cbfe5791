"""L1: what every layer may use (errors, settings, paths, ports, logs, metrics)."""
