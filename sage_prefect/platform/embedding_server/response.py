"""Bodies of answers: embeddings as JSON, as fast as Python can write them."""

from __future__ import annotations

from binascii import b2a_base64

import numpy as np
import orjson
from numpy.typing import NDArray

from sage_prefect.platform.embedding_server.request import EncodingFormat


def embeddings_body(
    vectors: NDArray[np.float32], encoding_format: EncodingFormat, model: str, prompt_tokens: int
) -> bytes:
    """The body of a 200 answer.

    Args:
        vectors: float32 [n, dimension], C-contiguous.
        encoding_format: ``base64`` carries the little-endian float32 bytes of a row.
        prompt_tokens: tokens that went through the model (what was cut off is not counted).
    """
    row = _base64 if encoding_format == "base64" else _floats
    # Written by hand: an object per row would cost more than the rows themselves.
    rows = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, row(vector))
        for index, vector in enumerate(vectors)
    )
    return (
        b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        % (
            rows,
            orjson.dumps(model),
            prompt_tokens,
            prompt_tokens,
        )
    )


def models_body(
    names: tuple[str, ...], created: int, max_tokens: int, dimension: int | None
) -> bytes:
    """The body of ``GET /v1/models``; the two sizes are ours, beside OpenAI's fields; a
    cross-encoder has no ``dimension``."""
    return orjson.dumps(
        {
            "object": "list",
            "data": [
                {
                    "id": name,
                    "object": "model",
                    "created": created,
                    "owned_by": "sage",
                    "max_model_len": max_tokens,
                    "embedding_dimension": dimension,
                }
                for name in names
            ],
        }
    )


def _floats(vector: NDArray[np.float32]) -> bytes:
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)


def _base64(vector: NDArray[np.float32]) -> bytes:
    return b'"%b"' % b2a_base64(vector.astype("<f4", copy=False).data, newline=False)
