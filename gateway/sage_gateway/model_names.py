"""Which pool of engines a client's model name stands for: aliases, plain names, wildcards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sage_gateway.served_model import ServedModel, Use, use_of
from sage_prefect.control_plane.events import Kind


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a model (LiteLLM's ``model_group_alias``)."""

    model: str
    hidden: bool = False
    """Not in the list of models."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a name has led to.

    Attributes:
        name: the name that an engine's :meth:`ServedModel.sent_as` is told.
        group: the model's name in the configuration.
        pools: names in the control plane, those of the lowest order first.
        is_pattern: the group stands for many names.
    """

    name: str
    group: str
    pools: tuple[str, ...]
    is_pattern: bool = False


class ModelNames:
    """All names, for one set of engines.

    Args:
        models: of all engines.
        aliases: other name -> model; one that names another alias is not followed further.
    """

    def __init__(self, models: Iterable[ServedModel], aliases: Mapping[str, Alias]) -> None:
        self._aliases = dict(aliases)
        orders: dict[tuple[str, Use], dict[int, str]] = {}
        self._modes: dict[str, set[str]] = {}
        for model in models:
            key = (model.name, model.use)
            orders.setdefault(key, {})[model.order] = model.pool
            self._modes.setdefault(model.name, set()).add(model.mode)
        self._exact: dict[tuple[str, Use], Target] = {}
        self._patterns: dict[Use, list[tuple[str, str, Target]]] = {
            "text": [],
            "embedding": [],
            "rerank": [],
        }
        for (name, use), pools in orders.items():
            in_order = tuple(pools[order] for order in sorted(pools))
            target = Target(name, name, in_order, "*" in name)
            if target.is_pattern:
                before, _, after = name.partition("*")
                self._patterns[use].append((before, after, target))
            else:
                self._exact[name, use] = target
        for patterns in self._patterns.values():
            # Of several that fit, the one with most letters of its own.
            patterns.sort(key=lambda item: (-len(item[0]) - len(item[1]), item[2].name))

    def target(self, name: str, kind: Kind) -> Target | None:
        """Who serves ``name`` for requests of this kind; None: nobody."""
        use = use_of(kind)
        if self._aliases and (alias := self._aliases.get(name)) is not None:
            name = alias.model
        found = self._exact.get((name, use))
        if found is not None or not self._patterns[use]:
            return found
        for before, after, target in self._patterns[use]:
            if len(name) > len(before) + len(after) and (
                name.startswith(before) and name.endswith(after)
            ):
                return Target(name, target.group, target.pools, True)
        return None

    def modes(self, name: str) -> set[str]:
        """The modes in which some engine serves ``name``."""
        kinds: tuple[Kind, ...] = ("chat", "embedding", "rerank")
        targets = [target for kind in kinds if (target := self.target(name, kind)) is not None]
        return {mode for target in targets for mode in self._modes[target.group]}

    def is_known(self, name: str) -> bool:
        """Whether some engine serves ``name``."""
        return bool(self.modes(name))

    def pools(self, group: str) -> set[str]:
        """The pools of a model of the configuration, of all its orders and kinds."""
        found = [*self._exact.values(), *(t for ps in self._patterns.values() for *_, t in ps)]
        return {pool for target in found if target.group == group for pool in target.pools}

    def listed(self) -> list[str]:
        """The names that clients are told, sorted: those that lead to an engine."""
        aliases = [
            name
            for name, alias in self._aliases.items()
            if not alias.hidden and self.is_known(name)
        ]
        return sorted({*self._modes, *aliases})
