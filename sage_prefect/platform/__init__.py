"""L2: engines, their supervision, models, storage and cluster descriptions."""
