"""Which settings of a configuration its policy does not use, and which policies do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from sage_prefect.control_plane.events import Band
from sage_prefect.control_plane.hybrid_parameters import HybridParameters
from sage_prefect.control_plane.strategies import POLICIES
from sage_prefect.control_plane.strategies.hybrid_policy import HybridSchedulingPolicy

if TYPE_CHECKING:
    from sage_gateway.config import GatewayConfig

Use = Callable[[HybridParameters], bool]
_WEIGHS = "random"


def unused_settings(config: GatewayConfig, policy: str) -> list[str]:
    """One sentence for each setting that makes no difference under ``policy``."""
    said = []
    for name, use in _settings(config):
        users = [known for known in POLICIES if _uses(known, use)] if use else [_WEIGHS]
        if policy not in users:
            said.append(f"{name} is not used by policy {policy!r}; {_listed(users)}.")
    return said


def _settings(config: GatewayConfig) -> Iterator[tuple[str, Use | None]]:
    """What the configuration sets, by name, and when it counts (None: when engines are drawn)."""
    for spec in config.bands:
        where = f"sage_settings.bands.{spec.band.label}"
        if spec.ttft_slo_s is not None:
            yield f"{where}.ttft_slo_ms", _ttft_of(spec.band)
        if spec.tpot_slo_s is not None:
            yield f"{where}.tpot_slo_ms", _tpot_of(spec.band)
    for i, tenant in enumerate(config.tenants):
        if tenant.weight != 1.0:
            yield f"sage_settings.tenants[{i}].weight", lambda parts: parts.fair
    for engine in config.engines:
        if engine.price != 1.0:
            yield f"model_info.price of engine {engine.name!r}", lambda parts: parts.price
    if len({engine.weight for engine in config.engines}) > 1:
        yield "litellm_params.weight (or rpm, tpm)", None


def _ttft_of(band: Band) -> Use:
    return lambda parts: parts.heeds_ttft(band)


def _tpot_of(band: Band) -> Use:
    return lambda parts: parts.heeds_tpot(band)


def _uses(policy: str, use: Use) -> bool:
    kind = POLICIES[policy]
    return issubclass(kind, HybridSchedulingPolicy) and use(kind.parameters)


def _listed(users: Iterable[str]) -> str:
    names = sorted(users)
    if not names:
        return "no policy uses it"
    if len(names) == 1:
        return f"{names[0]} uses it"
    return f"{', '.join(names[:-1])} and {names[-1]} use it"
