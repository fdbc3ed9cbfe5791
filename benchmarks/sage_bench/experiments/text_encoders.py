"""The ways from texts to vectors that the ``ingest`` experiment compares; each in a worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sage_bench.worker import timed

Vectors = NDArray[np.float32]


class _Encoder:
    """Texts from a file, a range of them per call."""

    def __init__(self, texts: str) -> None:
        self.texts: list[str] = orjson.loads(Path(texts).read_bytes())

    def encode(self, texts: list[str]) -> Vectors:
        raise NotImplementedError

    def measure(self, start: int, stop: int, **settings: Any) -> dict[str, float]:
        """Cost of embedding texts[start:stop] (CPU: of this process only)."""
        self.configure(**settings)
        texts = self.texts[start:stop]
        cost, vectors = timed(lambda: self.encode(texts))
        if vectors.shape[0] != len(texts):
            raise ValueError(f"{vectors.shape[0]} vectors for {len(texts)} texts")
        return cost

    def vectors(self, start: int, stop: int) -> list[list[float]]:
        """The vectors themselves, to compare systems."""
        return [[float(x) for x in row] for row in self.encode(self.texts[start:stop])]

    def configure(self, **settings: Any) -> None:
        """Apply settings that a sweep tries."""
        for name, value in settings.items():
            setattr(self, name, value)


class PlainEncoder(_Encoder):
    """``SentenceTransformer.encode`` in this process: the peer."""

    batch_size = 32

    def __init__(self, texts: str, model: str, device: str) -> None:
        super().__init__(texts)
        import torch
        from sentence_transformers import SentenceTransformer

        # None: its own choice, CUDA where there is one.
        chosen = None if device == "auto" else device
        self._model = SentenceTransformer(model, device=chosen, local_files_only=True)
        self._torch = torch

    def configure(self, **settings: Any) -> None:
        if "threads" in settings:
            self._torch.set_num_threads(settings.pop("threads"))
        super().configure(**settings)

    def encode(self, texts: list[str]) -> Vectors:
        found = self._model.encode(texts, batch_size=self.batch_size, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)


class ClientEncoder(_Encoder):
    """``UnifiedInferenceClient.embed`` to a server: requests of ``request_size`` texts, some in
    flight at once, as operator ``Embed`` sends them (texts sorted by length)."""

    request_size = 256
    concurrency = 2

    def __init__(self, texts: str, base_url: str, api_key: str, model: str) -> None:
        super().__init__(texts)
        from sage_prefect.inference.client import UnifiedInferenceClient

        self._client = UnifiedInferenceClient.create(
            base_url=base_url, api_key=api_key, timeout_s=300
        )
        self._model = model

    def encode(self, texts: list[str]) -> Vectors:
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts = np.array_split(order, -(-len(texts) // self.request_size))
        with ThreadPoolExecutor(self.concurrency) as pool:
            answers = list(pool.map(lambda rows: self._embed(texts, rows), parts))
        vectors = np.empty((len(texts), answers[0].shape[1]), dtype=np.float32)
        for rows, answer in zip(parts, answers, strict=True):
            vectors[rows] = answer
        return vectors

    def _embed(self, texts: list[str], rows: NDArray[np.int64]) -> Vectors:
        return np.asarray(self._client.embed([texts[row] for row in rows], model=self._model))


class OperatorEncoder(_Encoder):
    """Operator ``Embed`` itself, as a pipeline stage drives it, through the gateway."""

    def __init__(self, texts: str, model: str) -> None:
        super().__init__(texts)
        from sage_prefect.kernel.operator import OperatorContext
        from sage_prefect.middleware.embed import Embed

        self._operator = Embed(model)
        self._operator.context = OperatorContext()
        self._operator.setup()

    def encode(self, texts: list[str]) -> Vectors:
        import pyarrow as pa

        size = self._operator.batch_size or len(texts)
        found = []
        for start in range(0, len(texts), size):
            batch = pa.RecordBatch.from_pydict({"text": texts[start : start + size]})
            answer = self._operator.process(batch)
            assert isinstance(answer, pa.RecordBatch)
            column = answer.column("embedding")
            found.append(column.flatten().to_numpy().reshape(len(column), -1))
        return np.concatenate(found)
