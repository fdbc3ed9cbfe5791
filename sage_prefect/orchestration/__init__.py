"""L4: the only package of the library that imports Prefect and Dask."""
