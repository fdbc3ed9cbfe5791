"""An :class:`~.encoder.Encoder` over a sentence-transformers model in a local folder.

The vectors equal ``SentenceTransformer.encode`` of the same texts (same tokenizer, truncation,
pooling, normalisation, default prompt); tests/platform compares them. What differs is how texts
are put together: the caller brings token ids, already grouped by length.
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
    tokenize_in_slices,
)


class SentenceTransformerEncoder:
    """A loaded model. Thread-safe: :meth:`encode` may run in several threads at once.

    Args:
        path: a folder in sentence-transformers layout.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``..., or ``"auto"`` (CUDA where there is one).
        dtype: number format, see :func:`~.encoder.resolve_dtype`.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        ServiceError: the folder holds no model that embeds plain text, or there is no such device.
    """

    def __init__(self, path: Path, device: str = "auto", dtype: str = "auto") -> None:
        try:
            import torch
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise MissingDependencyError(
                error.name or "sentence-transformers", "embedding", "The embedding server"
            ) from error
        transformers_logging.disable_progress_bar()
        self._torch = torch
        self.device = resolve_device(device)
        model = SentenceTransformer(str(path), device=self.device, local_files_only=True)
        model.eval()
        self._dtype = resolve_dtype(dtype, self.device)
        self._model = model
        self._is_half = self._dtype is not torch.float32
        if self._is_half:
            model[0].to(self._dtype)  # pooling and normalisation stay in float32
        self._prompt = _default_prompt(model, path)
        self._max_tokens = _max_tokens(model, path)
        self._tokenizer = _rust_tokenizer(model, path, self._max_tokens)
        tokenizer = model.tokenizer
        self._pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
        self._pad_left = tokenizer.padding_side == "left"
        self._wants_types = "token_type_ids" in tokenizer.model_input_names
        self._dimension = int(self.encode([self.tokenize([""])[0].ids]).shape[1])

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._dimension

    @property
    def max_tokens(self) -> int:
        """Tokens of one text that the model reads, special tokens included."""
        return self._max_tokens

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, as ``SentenceTransformer.encode`` would make them.

        The work is done outside the GIL.
        """
        return tokenize_in_slices(self._tokenizer, [self._prompt + text for text in texts])

    def encode(self, batch: Sequence[list[int]]) -> NDArray[np.float32]:
        """Embeddings float32 [len(batch), dimension] of token ids (ragged; padded here)."""
        torch = self._torch
        ids, mask = pad(batch, self._pad_id, self._pad_left)
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids).to(self.device),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(self.device),
        }
        if self._wants_types:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        with torch.inference_mode():
            vectors = self._run(features)["sentence_embedding"]
            array: NDArray[np.float32] = vectors.float().cpu().numpy()
        return finite(array, self._dtype)

    def _run(self, features: dict[str, Any]) -> dict[str, Any]:
        if not self._is_half:
            run: dict[str, Any] = self._model(features)
            return run
        first, *rest = self._model
        features = {
            name: value.float() if getattr(value, "dtype", None) is self._dtype else value
            for name, value in first(features).items()
        }
        for module in rest:
            features = module(features)
        return features

    def bound_threads(self, threads: int) -> None:
        """Let torch use this many threads for what the calling thread runs."""
        self._torch.set_num_threads(threads)


def _default_prompt(model: Any, path: Path) -> str:
    name = getattr(model, "default_prompt_name", None)
    if name is None:
        return ""
    for module in model:
        if getattr(module, "include_prompt", True) is False:
            raise ServiceError(
                f"model {path.name!r} pools without its prompt {name!r}: not supported yet.",
                hint="Serve it with vLLM, or choose another model.",
            )
    return str(model.prompts[name])


def _max_tokens(model: Any, path: Path) -> int:
    candidates = [model.max_seq_length]
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    candidates.append(getattr(config, "max_position_embeddings", None))
    for candidate in candidates:
        if candidate is not None and 0 < int(candidate) < 1_000_000:
            return int(candidate)
    raise ServiceError(
        f"model {path.name!r} does not say how many tokens it reads.",
        hint="Set max_seq_length in its sentence_bert_config.json.",
    )


def _rust_tokenizer(model: Any, path: Path, max_tokens: int) -> Any:
    from tokenizers import Tokenizer

    modalities = getattr(model[0], "modality_config", {"text": {}})
    backend = getattr(getattr(model, "tokenizer", None), "backend_tokenizer", None)
    if backend is None or "text" not in modalities or "message" in modalities:
        raise ServiceError(
            f"model {path.name!r} does not embed plain text through a fast tokenizer.",
            hint="Serve it with vLLM, or choose a sentence-transformers text model.",
        )
    # A copy: model.tokenizer switches padding and truncation on its own whenever it is called.
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens, direction=model.tokenizer.truncation_side)
    return tokenizer
