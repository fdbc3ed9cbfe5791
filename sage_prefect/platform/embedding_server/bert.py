"""An :class:`~.encoder.Encoder` for BERT-family sentence encoders in plain torch.

Why not always ``SentenceTransformer``: importing it and transformers costs some 10 seconds of CPU
before a model of 90 MB is even opened; this is ready after three
(docs/decisions/0004-embedding-server.md). What is not exactly the architecture below is refused
with :class:`UnsupportedModel`, and the caller takes the general encoder.

Source: BERT, https://arxiv.org/abs/1810.04805, as transformers' ``BertModel`` computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
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


class UnsupportedModel(ServiceError):  # noqa: N818 - a finding, not a failure
    """The model is not one that :class:`BertEncoder` computes exactly."""


@dataclass(frozen=True)
class Architecture:
    """What the configuration files of a model folder say, checked."""

    layers: int
    heads: int
    epsilon: float
    pad_id: int
    max_tokens: int
    pooling: Literal["mean", "cls"]
    normalize: bool

    @classmethod
    def read(cls, path: Path) -> Architecture:
        """Read and check a model folder.

        Raises:
            UnsupportedModel: names what is different.
        """
        config = _json(path / "config.json")
        expected = {
            "model_type": "bert",
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "is_decoder": False,
        }
        defaults = {"position_embedding_type": "absolute", "is_decoder": False}
        for key, value in expected.items():
            _require(config.get(key, defaults.get(key)) == value, path, f"{key}={config.get(key)}")
        modules = [
            (str(module["type"]).rsplit(".", 1)[-1], str(module["path"]))
            for module in _json_list(path / "modules.json")
        ]
        kinds = [kind for kind, _ in modules]
        _require(
            kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]),
            path,
            f"modules {kinds}",
        )
        text = _json(path / "sentence_bert_config.json")
        unknown = sorted(set(text) - {"max_seq_length", "do_lower_case"})
        _require(
            not unknown and not text.get("do_lower_case"), path, f"{unknown or 'lower-casing'}"
        )
        _require(isinstance(text.get("max_seq_length"), int), path, "no max_seq_length")
        prompts = path / "config_sentence_transformers.json"
        if prompts.is_file():
            prompt = _json(prompts).get("default_prompt_name")
            _require(prompt is None, path, f"default prompt {prompt!r}")
        return cls(
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            epsilon=float(config["layer_norm_eps"]),
            pad_id=int(config.get("pad_token_id") or 0),
            max_tokens=min(text["max_seq_length"], int(config["max_position_embeddings"])),
            pooling=_pooling(_json(path / modules[1][1] / "config.json"), path),
            normalize="Normalize" in kinds,
        )


class BertEncoder:
    """A loaded model. Thread-safe: :meth:`encode` may run in several threads at once.

    Args:
        path: a folder in sentence-transformers layout.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``..., or ``"auto"`` (CUDA where there is one).
        dtype: number format, see :func:`~.encoder.resolve_dtype`; pooling is in float32 always.

    Raises:
        UnsupportedModel: another architecture, tokenizer, number format.
        MissingDependencyError: torch is not installed.
        ServiceError: there is no such device.
    """

    def __init__(self, path: Path, device: str = "auto", dtype: str = "auto") -> None:
        self.architecture = architecture = Architecture.read(path)
        try:
            import torch
            from safetensors.torch import load_file
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingDependencyError(
                error.name or "torch", "embedding", "The embedding server"
            ) from error
        tokenizer_file = path / "tokenizer.json"
        _require(tokenizer_file.is_file(), path, "no tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(architecture.max_tokens)
        self._torch = torch
        self.device = resolve_device(device)
        weights = load_file(path / "model.safetensors", device=self.device)
        types = {str(tensor.dtype) for tensor in weights.values() if tensor.is_floating_point()}
        _require(types == {"torch.float32"}, path, f"weights in {', '.join(sorted(types))}")
        self._dtype = resolve_dtype(dtype, self.device)
        converted = {name: tensor.to(self._dtype) for name, tensor in weights.items()}
        self._weights = _Weights(torch, converted, architecture, path)

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._weights.hidden

    @property
    def max_tokens(self) -> int:
        """Tokens of one text that the model reads, special tokens included."""
        return self.architecture.max_tokens

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text. The work is done outside the GIL."""
        return tokenize_in_slices(self._tokenizer, texts)

    def bound_threads(self, threads: int) -> None:
        """Let torch use this many threads for what the calling thread runs."""
        self._torch.set_num_threads(threads)

    def encode(self, batch: Sequence[list[int]]) -> NDArray[np.float32]:
        """Embeddings float32 [len(batch), dimension] of token ids (ragged; padded here)."""
        torch = self._torch
        ids, mask = pad(batch, self.architecture.pad_id)
        with torch.inference_mode():
            tokens = torch.from_numpy(ids).to(self.device)
            # Without padding there is nothing to mask, and attention takes its fast path.
            padded = None if mask.all() else torch.from_numpy(mask).to(self.device)
            states = self._states(tokens, padded)
            vectors = self._pool(states, padded)
            if self.architecture.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
            array: NDArray[np.float32] = vectors.cpu().numpy()
        return finite(array, self._dtype)

    def _states(self, tokens: Any, mask: Any) -> Any:
        functional = self._torch.nn.functional
        weights, epsilon = self._weights, self.architecture.epsilon
        rows, width = tokens.shape
        hidden, heads = weights.hidden, self.architecture.heads
        states = weights.words[tokens] + weights.positions[:width]
        states = functional.layer_norm(states, (hidden,), *weights.embedding_norm, epsilon)
        attend = None if mask is None else mask[:, None, None, :]
        for layer in weights.layers:
            # One matrix product for query, key and value: [rows, width, 3, heads, size].
            packed = functional.linear(states, *layer.query_key_value)
            query, key, value = packed.view(rows, width, 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attend)
            mixed = mixed.transpose(1, 2).reshape(rows, width, hidden)
            states = states + functional.linear(mixed, *layer.attention_output)
            states = functional.layer_norm(states, (hidden,), *layer.attention_norm, epsilon)
            inner = functional.gelu(functional.linear(states, *layer.intermediate))
            states = states + functional.linear(inner, *layer.output)
            states = functional.layer_norm(states, (hidden,), *layer.output_norm, epsilon)
        return states

    def _pool(self, states: Any, mask: Any) -> Any:
        states = states.float()
        if self.architecture.pooling == "cls":
            return states[:, 0]
        if mask is None:
            return states.mean(dim=1)
        weights = mask.to(states.dtype)[:, :, None]
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


class _Layer:
    """Weight and bias pairs of one transformer layer."""

    def __init__(self, torch: Any, weights: dict[str, Any], prefix: str) -> None:
        def pair(name: str) -> tuple[Any, Any]:
            return weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"]

        parts = [pair(f"attention.self.{name}") for name in ("query", "key", "value")]
        self.query_key_value = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self.attention_output = pair("attention.output.dense")
        self.attention_norm = pair("attention.output.LayerNorm")
        self.intermediate = pair("intermediate.dense")
        self.output = pair("output.dense")
        self.output_norm = pair("output.LayerNorm")


class _Weights:
    """All weights of a model, by their role."""

    def __init__(
        self, torch: Any, weights: dict[str, Any], architecture: Architecture, path: Path
    ) -> None:
        prefix = "bert." if any(name.startswith("bert.") for name in weights) else ""
        embeddings = f"{prefix}embeddings"
        try:
            self.words = weights[f"{embeddings}.word_embeddings.weight"]
            # All texts are of segment 0: its embedding is the same for every token.
            self.positions = (
                weights[f"{embeddings}.position_embeddings.weight"]
                + weights[f"{embeddings}.token_type_embeddings.weight"][0]
            )
            self.embedding_norm = (
                weights[f"{embeddings}.LayerNorm.weight"],
                weights[f"{embeddings}.LayerNorm.bias"],
            )
            self.layers = [
                _Layer(torch, weights, f"{prefix}encoder.layer.{number}")
                for number in range(architecture.layers)
            ]
        except KeyError as error:
            raise UnsupportedModel(f"model {path.name!r} has no tensor {error}.") from error
        self.hidden = int(self.words.shape[1])


def _pooling(config: dict[str, Any], path: Path) -> Literal["mean", "cls"]:
    modes = {
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    }
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        modes.add(mode)
    if modes in ({"mean_tokens"}, {"mean"}):
        return "mean"
    if modes in ({"cls_token"}, {"cls"}):
        return "cls"
    raise UnsupportedModel(f"model {path.name!r} pools by {sorted(modes)}.")


def _require(condition: bool, path: Path, what: str) -> None:
    if not condition:
        raise UnsupportedModel(f"model {path.name!r} is no plain BERT encoder: {what}.")


def _json(file: Path) -> dict[str, Any]:
    content = _json_value(file)
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{file} does not hold an object.")
    return content


def _json_list(file: Path) -> list[dict[str, Any]]:
    content = _json_value(file)
    if not isinstance(content, list):
        raise UnsupportedModel(f"{file} does not hold a list.")
    return content


def _json_value(file: Path) -> Any:
    try:
        return orjson.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise UnsupportedModel(f"{file} is not there.") from error
    except orjson.JSONDecodeError as error:
        raise ServiceError(f"{file} is not JSON: {error}.") from error
