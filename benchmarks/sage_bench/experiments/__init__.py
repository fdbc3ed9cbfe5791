"""The experiments: one file per question."""
