"""What the server asks of a model: tokens from texts, vectors from tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sage_prefect.common.errors import ServiceError

T = TypeVar("T")

# A slice bounds what the tokenizer holds at once: it keeps every token of a text, the cut-off
# ones too, at some hundred bytes each.
_SLICE_CHARACTERS = 1_000_000


class Tokens(NamedTuple):
    """One text after tokenisation.

    Attributes:
        ids: token ids, special tokens included, cut to what the model reads.
        truncated: whether something was cut off.
    """

    ids: list[int]
    truncated: bool


class Encoder(Protocol):
    """A model as the batcher sees it. All methods are called from worker threads."""

    device: str

    @property
    def dimension(self) -> int:
        """Length of an embedding."""

    @property
    def max_tokens(self) -> int:
        """Tokens of one text that the model reads, special tokens included."""

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text."""

    def encode(self, batch: Sequence[list[int]]) -> NDArray[np.float32]:
        """Embeddings [len(batch), dimension] of texts given as token ids (ragged)."""

    def bound_threads(self, threads: int) -> None:
        """Let the library below use this many threads for what the calling thread runs."""


@runtime_checkable
class PairEncoder(Encoder, Protocol):
    """A model that reads two texts together; its vectors have one number, the score."""

    def tokenize_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Tokens]:
        """Tokens of each pair."""


def tokenize_in_slices(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Tokens of each text by a ``tokenizers.Tokenizer``; works outside the GIL."""
    return [
        Tokens(encoding.ids, bool(encoding.overflowing))
        for part in slices(texts, len)
        for encoding in tokenizer.encode_batch_fast(part)
    ]


def pad(
    batch: Sequence[list[int]], pad_id: int, left: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """A ragged batch as ids int64 [n, longest] and mask [n, longest], true where there is text."""
    width = max(1, *(len(ids) for ids in batch)) if batch else 1
    ids = np.full((len(batch), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(batch), width), dtype=np.bool_)
    for row, tokens in enumerate(batch):
        place = slice(width - len(tokens), width) if left else slice(len(tokens))
        ids[row, place] = tokens
        mask[row, place] = True
    return ids, mask


def resolve_device(device: str) -> str:
    """``auto`` -> ``cuda`` where torch sees one, else ``cpu``. What CUDA needs is set up with it.

    Raises:
        ServiceError: the device that was asked for is not there.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ServiceError(
            f"device {device!r} was asked for, but torch {torch.__version__} sees no CUDA device.",
            hint="Use --device cpu, or install a CUDA build of torch and its driver.",
        )
    if device.startswith("cuda"):
        # cuDNN plans attention anew for every shape, some 100 ms each, and each batch has its own.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


DTYPES = ("auto", "float32", "float16", "bfloat16")


def resolve_dtype(dtype: str, device: str) -> Any:
    """torch's number format for weights and activations; ``auto``: float16 on a GPU, else float32.

    Measured on an H200 (docs/decisions/0004-embedding-server.md): half precision takes 0.14 of the
    time per token, and float16 changes no vector by more than 1e-6 in cosine, bfloat16 by 1e-4.

    Raises:
        ServiceError: the format is not known, or a CPU is to compute in float16.
    """
    import torch

    if dtype not in DTYPES:
        raise ServiceError(f"dtype {dtype!r} is not known.", hint=f"Use {', '.join(DTYPES)}.")
    on_cpu = device == "cpu"
    if dtype == "auto":
        return torch.float32 if on_cpu else torch.float16
    if dtype == "float16" and on_cpu:
        raise ServiceError(
            "a CPU computes float16 slower than float32.", hint="Use --dtype float32 or bfloat16."
        )
    return getattr(torch, dtype)


def finite(vectors: NDArray[np.float32], dtype: Any) -> NDArray[np.float32]:
    """``vectors``, if they are numbers.

    Raises:
        ServiceError: some are not: the model needs more range than ``dtype`` has.
    """
    if not np.isfinite(vectors).all():
        raise ServiceError(
            f"the model's vectors are not finite in {str(dtype).removeprefix('torch.')}.",
            hint="Start the server with --dtype float32.",
        )
    return vectors


def slices(texts: Sequence[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """Parts of ``texts`` that a tokenizer may hold at once.

    Args:
        length: characters of one of them.
    """
    part: list[T] = []
    size = 0
    for text in texts:
        more = length(text)
        if part and size + more > _SLICE_CHARACTERS:
            yield part
            part, size = [], 0
        part.append(text)
        size += more
    if part:
        yield part
