"""L5: Prefect blocks of SAGE."""
