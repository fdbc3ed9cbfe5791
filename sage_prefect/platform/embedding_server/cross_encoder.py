"""A cross-encoder in a local folder: reads two texts together and says how well they fit.

The scores equal ``sentence_transformers.CrossEncoder.predict`` of the same pairs (same tokenizer,
truncation and activation); tests/platform compares them. Pairs go through the batcher as texts do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_prefect.common.errors import MissingDependencyError, ServiceError
from sage_prefect.platform.embedding_server.encoder import (
    Tokens,
    finite,
    pad,
    resolve_device,
    resolve_dtype,
    slices,
)


class PairIds(list[int]):
    """Token ids of a pair, and where its second text begins.

    Attributes:
        types: 0 for each token of the first text, 1 for the second.
    """

    __slots__ = ("types",)

    def __init__(self, ids: Sequence[int], types: Sequence[int]) -> None:
        super().__init__(ids)
        self.types = types


class CrossEncoder:
    """A loaded model. Thread-safe: :meth:`encode` may run in several threads at once.

    Args:
        path: a folder with a sequence classification model of one label.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``..., or ``"auto"`` (CUDA where there is one).
        dtype: number format, see :func:`~.encoder.resolve_dtype`.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        ServiceError: the model has several labels or no fast tokenizer, or there is no such device.
    """

    dimension = 1
    """A pair has one score."""

    def __init__(self, path: Path, device: str = "auto", dtype: str = "auto") -> None:
        try:
            import torch
            from sentence_transformers import CrossEncoder as Loaded
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise MissingDependencyError(
                error.name or "sentence-transformers", "embedding", "The embedding server"
            ) from error
        transformers_logging.disable_progress_bar()
        self._torch = torch
        self.device = resolve_device(device)
        loaded = Loaded(str(path), device=self.device, local_files_only=True)
        loaded.eval()
        if loaded.num_labels != 1:
            raise ServiceError(
                f"model {path.name!r} tells {loaded.num_labels} labels apart; a reranker has one.",
                hint="Serve a cross-encoder with a single relevance score.",
            )
        if loaded.default_prompt_name is not None:
            raise ServiceError(
                f"model {path.name!r} has a prompt of its own, {loaded.default_prompt_name!r}: not "
                "supported yet.",
                hint="Serve it with vLLM, or choose another model.",
            )
        self._dtype = resolve_dtype(dtype, self.device)
        self._model = loaded.model.to(self._dtype)
        self._activation = loaded.activation_fn
        self._max_tokens = _max_tokens(loaded, path)
        self._tokenizer = _rust_tokenizer(loaded, path, self._max_tokens)
        tokenizer = loaded.tokenizer
        self._pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
        self._pad_left = tokenizer.padding_side == "left"
        self._wants_types = "token_type_ids" in tokenizer.model_input_names

    @property
    def max_tokens(self) -> int:
        """Tokens of one pair that the model reads, special tokens included."""
        return self._max_tokens

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Each text beside itself (the batcher warms up with that)."""
        return self.tokenize_pairs([(text, text) for text in texts])

    def tokenize_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Tokens]:
        """Tokens of each pair; of one too long, its longer text is cut first.

        The work is done outside the GIL.
        """
        return [
            Tokens(PairIds(encoding.ids, encoding.type_ids), bool(encoding.overflowing))
            for part in slices(pairs, lambda pair: len(pair[0]) + len(pair[1]))
            for encoding in self._tokenizer.encode_batch_fast(part)
        ]

    def encode(self, batch: Sequence[list[int]]) -> NDArray[np.float32]:
        """Scores float32 [len(batch), 1] of tokenised pairs (ragged; padded here)."""
        torch = self._torch
        ids, mask = pad(batch, self._pad_id, self._pad_left)
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids).to(self.device),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(self.device),
        }
        if self._wants_types:
            types, _ = pad([_types(pair) for pair in batch], 0, self._pad_left)
            features["token_type_ids"] = torch.from_numpy(types).to(self.device)
        with torch.inference_mode():
            scores = self._activation(self._model(**features).logits.float())
            array: NDArray[np.float32] = scores.cpu().numpy().reshape(len(batch), 1)
        return finite(array, self._dtype)

    def bound_threads(self, threads: int) -> None:
        """Let torch use this many threads for what the calling thread runs."""
        self._torch.set_num_threads(threads)


def _types(pair: list[int]) -> list[int]:
    if not isinstance(pair, PairIds):
        raise TypeError("a cross-encoder was given ids that are no pair. This is a bug.")
    return list(pair.types)


def _max_tokens(loaded: Any, path: Path) -> int:
    candidates = (loaded.max_seq_length, getattr(loaded.config, "max_position_embeddings", None))
    known = [int(c) for c in candidates if c is not None and 0 < int(c) < 1_000_000]
    if not known:
        raise ServiceError(
            f"model {path.name!r} does not say how many tokens it reads.",
            hint="Set model_max_length in its tokenizer_config.json.",
        )
    return min(known)


def _rust_tokenizer(loaded: Any, path: Path, max_tokens: int) -> Any:
    from tokenizers import Tokenizer

    backend = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ServiceError(
            f"model {path.name!r} has no fast tokenizer.", hint="Serve it with vLLM."
        )
    # A copy: the original switches padding and truncation on its own whenever it is called.
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(
        max_tokens, strategy="longest_first", direction=loaded.tokenizer.truncation_side
    )
    return tokenizer
