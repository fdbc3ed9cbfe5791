"""L6: the gateway: one OpenAI-compatible address in front of all engines.

A request passes ``server`` (listening, limits of the connection), ``app`` (routes, keys),
``inference`` (body, queue, relay), ``scheduler`` (the control plane under the wall clock) and
``upstream`` (the connection to the engine). Needs neither Prefect nor Dask nor torch.
"""

from sage_prefect.common.compiled import prefer_compiled

prefer_compiled(__name__, "sage_gateway._data_path")
