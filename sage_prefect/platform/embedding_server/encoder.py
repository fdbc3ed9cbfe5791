"""What the server asks of a model: tokens from texts, vectors from tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Tokens(NamedTuple):
    """One text after tokenisation.

    Attributes:
        ids: token ids, special tokens included, cut to what the model reads.
        truncated: whether something was cut off.
    """

    ids: list[int]
    truncated: bool


class Encoder(Protocol):
    """A model as the batcher sees it. Both methods are called from worker threads."""

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
