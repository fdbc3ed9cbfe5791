"""The pools of engines that one request tries, one after the other, until one answers."""

from __future__ import annotations

from collections.abc import Callable

from sage_gateway.errors import HttpError
from sage_gateway.fallbacks import Failure, FallbackRules, failure_of
from sage_gateway.model_access import ModelAccess
from sage_gateway.model_names import ModelNames, Target
from sage_prefect.control_plane.events import Kind

# By the modes of models, which ModelNames tells.
_FITTING = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embedding": "/v1/embeddings",
    "rerank": "/v1/rerank",
}


class ModelPlan:
    """Where a request is, and where it goes when that fails before the first byte.

    First the orders of its model, then what the rules name: for the failed model, then what was
    left of the list that led to it. No pool is tried twice.

    Args:
        names: of the engines now.
        rules: what is tried instead.
        kind: of the request.
        requested: the model that the client named.
        allows: whether the caller may use a model; others are passed over.
    """

    __slots__ = (
        "_allows",
        "_kind",
        "_left",
        "_names",
        "_rules",
        "_seen",
        "_tier",
        "fell_back",
        "requested",
        "target",
    )

    def __init__(
        self,
        names: ModelNames,
        rules: FallbackRules,
        kind: Kind,
        requested: str,
        *,
        allows: Callable[[str], bool],
    ) -> None:
        self._names = names
        self._rules = rules
        self._kind: Kind = kind
        self._allows = allows
        self._left: tuple[str, ...] = ()
        self._tier = 0
        self.requested = requested
        self.target = names.target(requested, kind)
        """None: nobody serves the requested model."""
        self._seen: list[Target | None] = [self.target]
        self.fell_back = False
        """Another model than the requested one is being tried."""

    @property
    def pool(self) -> str:
        """The control plane's name for the engines to try now."""
        return self.requested if self.target is None else self.target.pools[self._tier]

    @property
    def name(self) -> str:
        """The name of the model to try now, for engines."""
        return self.requested if self.target is None else self.target.name

    def may_follow(self, failure: Failure | None) -> bool:
        """Whether there is something else to try after such a failure."""
        if failure is None:
            return False
        return self._has_tier(failure) or self._next_target(failure) is not None

    def may_follow_error(self, error: HttpError) -> bool:
        """Whether there is something else to try after this error."""
        return bool(self._left or self._rules or self._has_tier(Failure.GENERAL)) and (
            self.may_follow(failure_of(error))
        )

    def advance(self, error: HttpError) -> bool:
        """Go on to what is to be tried next; False: that was all."""
        failure = failure_of(error)
        if failure is None:
            return False
        if self._has_tier(failure):
            self._tier += 1
            return True
        found = self._next_target(failure)
        if found is None:
            return False
        self.target, self._left = found
        self._tier, self.fell_back = 0, True
        self._seen.append(self.target)
        return True

    def _has_tier(self, failure: Failure) -> bool:
        return (
            failure is Failure.GENERAL
            and self.target is not None
            and self._tier + 1 < len(self.target.pools)
        )

    def _next_target(self, failure: Failure) -> tuple[Target, tuple[str, ...]] | None:
        """The next model that somebody serves, and the names after it."""
        if len(self._seen) > self._rules.most or not (self._rules or self._left):
            return None
        names = [*self._own(failure), *self._left]
        for at, name in enumerate(names):
            if not self._allows(name):
                continue
            target = self._names.target(name, self._kind)
            if target is not None and target not in self._seen:
                return target, tuple(names[at + 1 :])
        return None

    def _own(self, failure: Failure) -> tuple[str, ...]:
        """What the rules name for the model that failed, under whichever of its names."""
        if self.target is None:
            return self._rules.after(self.requested, failure)
        mine = () if self.fell_back else (self.requested,)
        for name in dict.fromkeys((*mine, self.target.name, self.target.group)):
            if listed := self._rules.after(name, failure):
                return listed
        return ()


def plan_of(
    names: ModelNames, rules: FallbackRules, kind: Kind, requested: str, access: ModelAccess
) -> ModelPlan:
    """The plan of a request.

    Args:
        access: what the caller may use: the requested name, or what it leads to.

    Raises:
        HttpError: 403, the caller may not use the model; 400, it is of another mode.
    """
    plan = ModelPlan(names, rules, kind, requested, allows=access.allows)
    target = plan.target
    if access.is_limited:
        led_to = () if target is None else (target.name, target.group)
        if not any(access.allows(name) for name in (requested, *led_to)):
            raise HttpError(
                403,
                f"This key may not use the model {requested[:100]!r}. It may use: "
                f"{', '.join(access.listed())}.",
                code="model_not_allowed",
                param="model",
            )
    if target is None and (modes := names.modes(requested)):
        fitting = " or ".join(sorted({_FITTING[mode] for mode in modes}))
        raise HttpError(
            400,
            f"The model {requested!r} does not serve this route; use {fitting}.",
            code="model_mode_mismatch",
            param="model",
        )
    return plan
