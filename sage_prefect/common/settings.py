"""Settings of SAGE: one typed tree, four sources, one precedence.

Highest first: command line, environment (``SAGE_GATEWAY__HOST``: two underscores go one level
down; an empty value counts as not set), project file (``./sage.yaml``, or the file that
``SAGE_CONFIG`` names), user file (``config.yaml`` in
:func:`sage_prefect.common.paths.config_dir`), defaults. A key that nobody knows is an error that
suggests the nearest known one. Files may say ``key: null`` to go back to "none"; a path may begin
with ``~``, and a relative one counts from the working directory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sage_prefect.common.errors import SettingsError, near_name
from sage_prefect.common.paths import config_dir
from sage_prefect.common.ports import SagePorts

# Environment variables with our prefix that are not settings: read where they are used.
NOT_SETTINGS = frozenset(
    {
        "SAGE_HOME",
        "SAGE_CONFIG",
        "SAGE_COMPILED",
        "SAGE_API_KEY",
        "SAGE_BASE_URL",
        "SAGE_MASTER_KEY",
        "SAGE_SERVICE",
        "SAGE_SUPERVISOR",
        "SAGE_REQUEST_TIMEOUT",
        "SAGE_VLLM_PYTHON",
        "SAGE_NATIVE_ISA",
        "SAGE_NATIVE_NO_AMX",
        "SAGE_NATIVE_NO_VNNI",
        "SAGE_NATIVE_THREADS",
        "SAGE_RESULTS_DIR",
    }
    | {port.variable for port in SagePorts}
)

# Where a value came from, by its path in the tree: ("gateway", "port") -> "environment".
Sources = dict[tuple[str, ...], str]

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class GatewaySettings(_Section):
    """The gateway that ``sage up`` starts."""

    host: str = Field("127.0.0.1", description="Address to bind.")
    port: int | None = Field(None, ge=1, le=65535, description="Port; none: 8888 or the next free.")
    config: UserPath | None = Field(
        None, description="A gateway.yaml; none: generated from engines."
    )
    policy: str = Field("hybrid", description="Scheduling policy of the control plane.")
    record: UserPath | None = Field(None, description="Event log to write; none: record nothing.")


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
    config: UserPath | None = Field(
        None, description="A cluster.yaml; none: one CPU, one GPU worker."
    )


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
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severity that SAGE's processes log."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people (text) or for machines (json)."
    )


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
    return load_with_sources(
        overrides, environ=environ, project_file=project_file, user_file=user_file
    )[0]


def load_with_sources(
    overrides: dict[str, Any] | None = None,
    *,
    environ: dict[str, str] | None = None,
    project_file: Path | None = None,
    user_file: Path | None = None,
) -> tuple[Settings, Sources]:
    """:func:`load_settings`, and where each value came from (what is missing: a default)."""
    env = dict(os.environ) if environ is None else environ
    merged: dict[str, Any] = {}
    origin: Sources = {}
    for file in settings_files(env, project_file=project_file, user_file=user_file):
        if file.is_file():
            _merge(merged, _read(file), origin, str(file))
    _merge(merged, _from_environ(env), origin, "environment")
    _merge(merged, _without_none(overrides or {}), origin, "command line")
    _refuse_unknown(merged, Settings, (), origin)
    try:
        return Settings.model_validate(merged), origin
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
            hint="Every setting, its kind and its default: docs/configuration.md.",
        ) from None


def variable_of(path: tuple[str, ...]) -> str:
    """The environment variable that sets ``path``: ``SAGE_GATEWAY__PORT``."""
    return "SAGE_" + "__".join(path).upper()


def settings_files(
    environ: dict[str, str] | None = None,
    *,
    project_file: Path | None = None,
    user_file: Path | None = None,
) -> tuple[Path, Path]:
    """The user's file and the project's file, whether they exist or not; the latter wins.

    Raises:
        SettingsError: ``SAGE_CONFIG`` names no file.
    """
    env = dict(os.environ) if environ is None else environ
    explicit = env.get("SAGE_CONFIG")
    if project_file is None:
        project_file = Path(explicit).expanduser() if explicit else Path("sage.yaml")
        if explicit and not project_file.is_file():
            raise SettingsError(
                f"SAGE_CONFIG={explicit!r} is not a file.", hint="Correct or unset it."
            )
    return user_file or config_dir() / "config.yaml", project_file


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
    # `section:` with nothing below it is a section without settings, not a section set to null.
    return {
        key: {} if value is None and key in _SECTIONS else value for key, value in content.items()
    }


_SECTIONS = frozenset(
    name
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
)


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
        if value == "":
            continue
        *sections, key = variable.removeprefix("SAGE_").lower().split("__")
        node: Any = tree
        for section in sections:
            node = node.setdefault(section, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or isinstance(node.get(key), dict):
            raise SettingsError(
                f"{variable}={value!r} gives a section and one of its keys a value.",
                hint="A section has no value of its own: set SAGE_SECTION__KEY.",
            )
        node[key] = value
    return tree


def _merge(
    into: dict[str, Any],
    new: dict[str, Any],
    origin: Sources,
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
    origin: Sources,
) -> None:
    for key, value in tree.items():
        here = (*path, str(key))
        field = model.model_fields.get(str(key))
        if field is None:
            source = origin.get(here, "settings")
            # Name it, and its neighbours, as the reader wrote it.
            shown = variable_of if source == "environment" else ".".join
            known = [shown((*path, name)) for name in sorted(model.model_fields)]
            raise SettingsError(
                f"unknown setting {shown(here)!r} ({source}).",
                hint=f"{near_name(shown(here), known)}Known here: {', '.join(known)}.",
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
