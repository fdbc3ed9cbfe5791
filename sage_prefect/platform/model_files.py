"""What a model's files say about themselves: format, mode, checksum."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO, Literal

import orjson

from sage_prefect.common.errors import CorruptFileError, ModelNotFoundError
from sage_prefect.common.paths import atomic_write, cache_dir

ModelFormat = Literal["gguf", "safetensors"]
ModelMode = Literal["chat", "embedding", "rerank"]


def detect_format(path: Path) -> ModelFormat:
    """``gguf`` for a GGUF file, ``safetensors`` for a folder in Hugging Face layout.

    Raises:
        ModelNotFoundError: it is neither.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return "gguf"
        raise ModelNotFoundError(
            f"{path} is not a GGUF file.", hint="Give a .gguf file, or a folder with safetensors."
        )
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return "safetensors"
    raise ModelNotFoundError(
        f"{path} holds no model: config.json and *.safetensors are expected in it.",
        hint="Give a .gguf file, or a folder in Hugging Face layout.",
    )


def detect_mode(path: Path, model_format: ModelFormat) -> ModelMode:
    """Whether a model chats, embeds or reranks, from its own metadata.

    Encoder families (BERT and its kin) embed, as does a folder with sentence-transformers
    modules; with one label for a sequence they rerank (cross-encoders); all else chats.
    """
    if model_format == "gguf":
        return "embedding" if "bert" in gguf_architecture(path) else "chat"
    config = orjson.loads((path / "config.json").read_bytes())
    architectures = " ".join(config.get("architectures") or [])
    # Before modules.json, which sentence-transformers writes for cross-encoders too. Several labels
    # make a classifier; transformers writes id2label where there are not two.
    if "ForSequenceClassification" in architectures and len(config.get("id2label") or ()) == 1:
        return "rerank"
    if (path / "modules.json").is_file():
        return "embedding"
    causal = "CausalLM" in architectures or "ConditionalGeneration" in architectures
    return "chat" if causal or not architectures else "embedding"


def gguf_architecture(path: Path) -> str:
    """``general.architecture`` of a GGUF file, for example ``"llama"``.

    Source: the GGUF specification (ggml docs/gguf.md): little endian header
    ``magic, version, tensor count, metadata count``, then typed key-value pairs.

    Raises:
        CorruptFileError: the header is damaged or lacks the key.
    """
    try:
        with path.open("rb") as file:
            magic, _version, _tensors, pairs = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF":
                raise CorruptFileError(f"{path} is not a GGUF file: it starts with {magic!r}.")
            for _ in range(pairs):
                key = _read_string(file)
                (kind,) = struct.unpack("<I", file.read(4))
                if key == "general.architecture" and kind == _STRING:
                    return _read_string(file)
                _skip_value(file, kind)
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"the header of {path} is damaged: {error!r}.") from error
    raise CorruptFileError(f"{path} does not say its general.architecture.")


_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _read_string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > 1 << 20:
        raise struct.error(f"string of {length} bytes")
    return file.read(length).decode("utf-8")


def _skip_value(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        (length,) = struct.unpack("<Q", file.read(8))
        _skip(file, length)
    elif kind == _ARRAY:
        inner, count = struct.unpack("<IQ", file.read(12))
        if inner == _STRING:
            for _ in range(count):
                _skip_value(file, inner)
        else:  # arrays of arrays are not in use: a KeyError like any unknown kind
            _skip(file, _SIZES[inner] * count)
    else:
        _skip(file, _SIZES[kind])


def _skip(file: BinaryIO, count: int) -> None:
    if count > os.fstat(file.fileno()).st_size - file.tell():
        raise struct.error(f"a value of {count} bytes reaches beyond the end of the file")
    file.seek(count, 1)


def sha256_cached(file: Path) -> str:
    """SHA-256 (hex) of a file; remembered by path, size and modification time.

    The memory lies in the cache directory, so that a start does not read gigabytes again.
    """
    status = file.stat()
    memory_file = cache_dir() / "model-checksums.json"
    key = str(file.absolute())
    stamp = [status.st_size, status.st_mtime_ns]
    memory = _read_memory(memory_file)
    known = memory.get(key)
    if isinstance(known, list) and known[:2] == stamp:
        return str(known[2])
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    # Two processes may write at once: each writes a whole, valid file, and a lost entry only
    # means one more hash.
    memory = {**_read_memory(memory_file), key: [*stamp, digest.hexdigest()]}
    atomic_write(memory_file, orjson.dumps(memory, option=orjson.OPT_INDENT_2))
    return digest.hexdigest()


def _read_memory(file: Path) -> dict[str, object]:
    try:
        content = orjson.loads(file.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
