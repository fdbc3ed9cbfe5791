"""Settings of SAGE: one typed tree, four sources, one precedence.

Highest first: command line, environment (``SAGE_GATEWAY__HOST``: two underscores go one level
down), project file (``./sage.yaml``, or the file that ``SAGE_CONFIG`` names), user file
(``config.yaml`` in :func:`sage_prefect.common.paths.config_dir`), defaults. A key that nobody knows
is an error that suggests the nearest known one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sage_prefect.common.errors import SettingsError, near_name
from sage_prefect.common.paths import config_dir
from sage_prefect.common.ports import SagePorts

# Environment variables with our prefix that are not settings: read where they are used.
NOT_SETTINGS = frozenset(
    {
        "SAGE_HOME",
        "SAGE_CONFIG",
        "SAGE_API_KEY",
        "SAGE_BASE_URL",
        "SAGE_MASTER_KEY",
        "SAGE_SERVICE",
        "SAGE_SUPERVISOR",
        "SAGE_REQUEST_TIMEOUT",
        "SAGE_VLLM_PYTHON",
        "SAGE_NATIVE_ISA",
    }
    | {port.variable for port in SagePorts}
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class GatewaySettings(_Section):
    """The gateway that ``sage up`` starts."""

    host: str = Field("127.0.0.1", description="Address to bind.")
    port: int | None = Field(None, ge=1, le=65535, description="Port; none: 8888 or the next free.")
    config: Path | None = Field(None, description="A gateway.yaml; none: generated from engines.")
    policy: str = Field("fifo", description="Scheduling policy of the control plane.")


class EngineSettings(_Section):
    """The engines that ``sage up`` starts."""

    llm: str = Field("smollm2-135m", description="Model of the default LLM engine.")
    llm_engine: Literal["auto", "vllm", "llamacpp"] = Field(
        "auto", description="Driver of the LLM engine; auto: vllm where a GPU is, else llamacpp."
    )
    llm_slots: int = Field(4, ge=1, le=256, description="Concurrent requests in the LLM engine.")
    llm_context: int = Field(2048, ge=256, description="Context window per slot, in tokens.")
    embedding: str = Field("all-minilm-l6-v2", description="Model of the embedding engine.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of the engines.")
    start_timeout_s: float = Field(300.0, gt=0, description="Time for an engine to become ready.")


class PrefectSettings(_Section):
    """The Prefect server that ``sage up`` starts, or the one to use."""

    api_url: str | None = Field(None, description="An existing server's API URL; none: start one.")
    port: int | None = Field(None, ge=1, le=65535, description="Port; none: 4200 or the next free.")


class ClusterSettings(_Section):
    """The Dask cluster that ``sage up`` starts, or the one to use."""

    address: str | None = Field(None, description="An existing scheduler's address; none: start.")
    config: Path | None = Field(None, description="A cluster.yaml; none: one CPU, one GPU worker.")


class PipelineSettings(_Section):
    """Defaults of pipeline runs."""

    runner: Literal["sage", "stock"] = Field(
        "sage", description="Task runner: ours (caches contexts) or prefect-dask's own."
    )
    retries: int = Field(2, ge=0, description="Retries of a partition on a retryable error.")
    retry_delay_s: float = Field(2.0, ge=0, description="First delay; doubles with each retry.")
    max_in_flight: int = Field(32, ge=1, description="Partitions submitted at once per flow.")


class Settings(_Section):
    """The whole tree. Build it with :func:`load_settings`."""

    gateway: GatewaySettings = GatewaySettings()
    engines: EngineSettings = EngineSettings()
    prefect: PrefectSettings = PrefectSettings()
    cluster: ClusterSettings = ClusterSettings()
    pipelines: PipelineSettings = PipelineSettings()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"


def load_settings(
    overrides: dict[str, Any] | None = None,
    *,
    environ: dict[str, str] | None = None,
    project_file: Path | None = None,
    user_file: Path | None = None,
) -> Settings:
    """Read all sources and return the checked tree.

    Args:
        overrides: what the command line says, as nested dicts; ``None`` values are left out.
        environ: the environment (default: ``os.environ``).
        project_file: default ``$SAGE_CONFIG`` or ``./sage.yaml``.
        user_file: default ``config.yaml`` in the config directory.

    Raises:
        SettingsError: names the source, the key, its value and what was expected.
    """
    env = dict(os.environ) if environ is None else environ
    merged: dict[str, Any] = {}
    origin: dict[tuple[str, ...], str] = {}
    explicit = env.get("SAGE_CONFIG")
    if project_file is None:
        project_file = Path(explicit) if explicit else Path("sage.yaml")
    if explicit and not project_file.is_file():
        raise SettingsError(f"SAGE_CONFIG={explicit!r} is not a file.", hint="Correct or unset it.")
    for file in (user_file or config_dir() / "config.yaml", project_file):
        if file.is_file():
            _merge(merged, _read(file), origin, f"{file}")
    _merge(merged, _from_environ(env), origin, "environment")
    _merge(merged, _without_none(overrides or {}), origin, "command line")
    _refuse_unknown(merged, Settings, (), origin)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            path = tuple(str(part) for part in item["loc"])
            source = next(
                (origin[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origin), "default"
            )
            lines.append(f"{'.'.join(path)}={item['input']!r} ({source}): {item['msg']}")
        raise SettingsError(
            "settings are wrong: " + "; ".join(lines) + ".",
            hint="`sage config show` prints every setting, its value and where it came from.",
        ) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read settings file {file}: {error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(
            f"settings file {file} holds a {type(content).__name__}, not a mapping.",
            hint="Write `section:` with `key: value` lines below it.",
        )
    return content


def _from_environ(env: dict[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for variable, value in env.items():
        if not variable.startswith("SAGE_") or variable in NOT_SETTINGS:
            continue
        if variable.startswith("SAGE_PORT_"):
            known = [port.variable for port in SagePorts]
            raise SettingsError(
                f"unknown variable {variable}.",
                hint=f"{near_name(variable, known)}Known: {', '.join(known)}.",
            )
        path = variable.removeprefix("SAGE_").lower().split("__")
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value if value != "" else None
    return _without_none(tree)


def _merge(
    into: dict[str, Any],
    new: dict[str, Any],
    origin: dict[tuple[str, ...], str],
    source: str,
    path: tuple[str, ...] = (),
) -> None:
    for key, value in new.items():
        here = (*path, str(key))
        origin[here] = source
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, origin, source, here)
        elif isinstance(value, dict):
            into[key] = {}
            _merge(into[key], value, origin, source, here)
        else:
            into[key] = value


def _refuse_unknown(
    tree: dict[str, Any],
    model: type[BaseModel],
    path: tuple[str, ...],
    origin: dict[tuple[str, ...], str],
) -> None:
    for key, value in tree.items():
        here = (*path, str(key))
        field = model.model_fields.get(str(key))
        if field is None:
            source = origin.get(here, "settings")
            name = ".".join(here)
            if source == "environment":
                name = "SAGE_" + "__".join(here).upper()
            raise SettingsError(
                f"unknown setting {name!r} ({source}).",
                hint=f"{near_name(str(key), model.model_fields)}"
                f"Known here: {', '.join(sorted(model.model_fields))}.",
            )
        kind = field.annotation
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            _refuse_unknown(value, kind, here, origin)


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    cleaned: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            inner = _without_none(value)
            if inner:
                cleaned[key] = inner
        elif value is not None:
            cleaned[key] = value
    return cleaned
