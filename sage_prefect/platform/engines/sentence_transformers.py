"""Our embedding server (``sage_prefect.platform.embedding_server``) over sentence-transformers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

from sage_prefect.common.errors import ModelNotFoundError
from sage_prefect.common.ports import SagePorts
from sage_prefect.platform.engines.base import (
    Availability,
    EngineDriver,
    EngineOptions,
    service_name,
)
from sage_prefect.platform.models import resolve
from sage_prefect.platform.service import (
    EngineRegistration,
    PortClaim,
    Probe,
    ServedModel,
    ServiceSpec,
)


class SentenceTransformersDriver(EngineDriver):
    """Serves embedding models and cross-encoders in Hugging Face layout."""

    name = "sentence-transformers"
    modes = frozenset({"embedding", "rerank"})

    def availability(self) -> Availability:
        """Whether sentence-transformers and a web server are installed."""
        for package in ("sentence_transformers", "uvicorn"):
            if importlib.util.find_spec(package) is None:
                return Availability(
                    False,
                    f"the package {package!r} is not installed.",
                    "Install it with: pip install 'sage-prefect[embedding]'",
                )
        version = importlib.metadata.version("sentence-transformers")
        return Availability(True, f"sentence-transformers {version}")

    def service(
        self,
        model: str,
        *,
        name: str | None = None,
        port: int | None = None,
        options: EngineOptions | None = None,
    ) -> ServiceSpec:
        """An embedding server process; see :meth:`EngineDriver.service`."""
        options = options or EngineOptions()
        self.require_available()
        files = resolve(model)
        self.require_mode(files)
        if files.format != "safetensors":
            raise ModelNotFoundError(
                f"model {files.name!r} is in {files.format} format; sentence-transformers loads "
                "folders in Hugging Face layout.",
                hint="Give the folder with config.json and *.safetensors.",
            )
        command = [
            *(sys.executable, "-m", "sage_prefect.platform.embedding_server"),
            *("--model", model, "--host", "127.0.0.1", "--port", "{port}"),
            *("--device", options.device, *options.extra),
        ]
        url = "http://127.0.0.1:{port}"
        return ServiceSpec(
            name=name or service_name(files.name),
            kind="engine",
            command=tuple(command),
            ports=(PortClaim.of(SagePorts.EMBEDDING, port),),
            ready=Probe(kind="http", target=f"{url}/health"),
            start_timeout_s=options.start_timeout_s,
            engine=EngineRegistration(
                base_url=f"{url}/v1",
                models=(ServedModel(name=files.name, mode=files.mode),),
                driver=self.name,
                device="cuda" if options.device == "cuda" else "cpu",
                # It batches by tokens itself: give it enough at once to choose from.
                max_concurrency=max(32, options.slots),
            ),
        )
