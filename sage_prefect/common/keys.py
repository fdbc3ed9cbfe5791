"""The gateway's master key: from the environment, else from a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path

from sage_prefect.common.errors import SettingsError
from sage_prefect.common.paths import config_dir


def key_file() -> Path:
    """Where the generated key lies."""
    return config_dir() / "master.key"


def read_master_key(file: Path | None = None) -> str | None:
    """``SAGE_MASTER_KEY``, else the key file's content, else None.

    Raises:
        SettingsError: the file can be read by others, cannot be read by us, or is empty.
    """
    from_environment = os.environ.get("SAGE_MASTER_KEY", "").strip()
    if from_environment:
        return from_environment
    file = file or key_file()
    try:
        with file.open(encoding="ascii") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            key = opened.read().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read key file {file}: {error}.",
            hint="Make it readable for you, delete it to have a new key made, "
            "or set SAGE_MASTER_KEY.",
        ) from error
    if mode & 0o077:
        raise SettingsError(
            f"key file {file} has mode {mode:04o}: others can read it.",
            hint=f"Run `chmod 600 {file}`, or delete it to have a new key made.",
        )
    if not key:
        raise SettingsError(f"key file {file} is empty.", hint="Delete it to have a new key made.")
    return key


def ensure_master_key(file: Path | None = None) -> str:
    """The master key; makes one (256 bit, mode 0600) where there is none."""
    key = read_master_key(file)
    if key:
        return key
    file = file or key_file()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = f"sk-sage-{secrets.token_urlsafe(32)}"
    # Written whole under another name (mkstemp: mode 0600), then linked: a reader never sees half a
    # key, and of two processes that start together one makes the key, the other reads it.
    fd, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(fd, "w", encoding="ascii") as opened:
            opened.write(key + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        os.link(temporary, file)
    except FileExistsError:
        existing = read_master_key(file)
        if existing:
            return existing
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)
    return key
