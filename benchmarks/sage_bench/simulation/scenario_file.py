"""Reads scenario files; says what is wrong, where, and what was probably meant."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sage_bench.simulation.scenario import ScenarioSpec
from sage_prefect.common.errors import SettingsError, UnknownNameError, near_name

SCENARIOS = Path(__file__).with_name("scenarios")


def known_scenarios() -> dict[str, Path]:
    """The scenarios that come with the package, by name."""
    return {file.stem: file for file in sorted(SCENARIOS.glob("*.yaml"))}


def find_scenario(name: str) -> Path:
    """A file's path as given, or the path of a known scenario.

    Raises:
        UnknownNameError: neither; lists the known ones.
    """
    file = Path(name)
    if file.suffix in (".yaml", ".yml") or file.is_file():
        return file
    known = known_scenarios()
    if name not in known:
        raise UnknownNameError("scenario", name, known)
    return known[name]


def read_scenario(file: Path) -> ScenarioSpec:
    """Read and check a scenario.

    Raises:
        SettingsError: the file cannot be read, is no YAML mapping, or holds something wrong.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the scenario {file}: {error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"the scenario {file} is not YAML: {error}.") from None
    return parse_scenario(content, str(file))


def parse_scenario(content: Any, where: str = "scenario") -> ScenarioSpec:
    """Check a scenario's content.

    Raises:
        SettingsError: names each wrong key or value, with the nearest known key.
    """
    if not isinstance(content, dict):
        raise SettingsError(f"{where} holds a {type(content).__name__}, not a mapping.")
    try:
        return ScenarioSpec.model_validate(content)
    except ValidationError as error:
        wrong = [_explain(item) for item in error.errors()]
        raise SettingsError(f"{where}: {'; '.join(wrong)}.") from None


def narrowed(
    spec: ScenarioSpec, policies: list[str] | None = None, duration_s: float | None = None
) -> ScenarioSpec:
    """The scenario with some of its policies, or of another length (warm-up in proportion).

    Raises:
        UnknownNameError: the scenario has no such policy.
    """
    update: dict[str, Any] = {}
    if policies:
        known = {policy.label: policy for policy in spec.policies}
        for name in policies:
            if name not in known:
                raise UnknownNameError(f"policy of scenario {spec.name}", name, known)
        update["policies"] = [known[name] for name in policies]
    if duration_s is not None:
        update["warmup_s"] = spec.warmup_s * duration_s / spec.duration_s
        update["duration_s"] = duration_s
    return spec.model_copy(update=update)


def _explain(item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    at = ".".join(path) or "the file"
    if item["type"] == "extra_forbidden":
        known = _keys_at(item["loc"][:-1])
        near = near_name(path[-1], known)
        return f"{at}: unknown key. {near}Known: {', '.join(known)}"
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = "" if isinstance(given, (dict, list)) else f" (is {given!r})"
    return f"{at}: {message}{shown}"


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    models: list[type[BaseModel]] = [ScenarioSpec]
    for part in loc:
        if isinstance(part, int):
            continue
        inner = [
            found
            for model in models
            if part in model.model_fields
            for found in _models_in(model.model_fields[part].annotation)
        ]
        # A part that is no field is the tag of a union: process, kind.
        models = inner or [model for model in models if _tag_is(model, part)] or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin in (list, typing.Union, types.UnionType, typing.Annotated):
        return [m for inner in typing.get_args(annotation) for m in _models_in(inner)]
    return []


def _tag_is(model: type[BaseModel], tag: str) -> bool:
    return any(
        tag in typing.get_args(model.model_fields[name].annotation)
        for name in ("process", "kind")
        if name in model.model_fields
    )
