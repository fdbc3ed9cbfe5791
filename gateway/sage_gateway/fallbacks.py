"""Which models answer instead when one cannot: LiteLLM's ``fallbacks``, by kind of failure."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sage_gateway.errors import HttpError

DEFAULT_MOST = 5
"""LiteLLM's ``max_fallbacks``."""


class Failure(enum.Enum):
    """Why a model did not answer, as far as another one may do better."""

    GENERAL = "general"
    CONTEXT_WINDOW = "context_window"
    CONTENT_POLICY = "content_policy"


@dataclass(frozen=True, slots=True)
class FallbackRules:
    """Model -> the models to try instead, in order. ``*`` as a model stands for all others."""

    general: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    context_window: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    content_policy: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default: tuple[str, ...] = ()
    """For models without general ones."""
    most: int = DEFAULT_MOST

    def __bool__(self) -> bool:
        return bool(self.general or self.context_window or self.content_policy or self.default)

    def after(self, model: str, failure: Failure) -> tuple[str, ...]:
        """The models to try instead of ``model``.

        As in LiteLLM, a special failure takes its own list; where no such list is configured at
        all, the general one.
        """
        if failure is Failure.CONTEXT_WINDOW and self.context_window:
            return self._of(self.context_window, model)
        if failure is Failure.CONTENT_POLICY and self.content_policy:
            return self._of(self.content_policy, model)
        return self._of(self.general, model) or tuple(m for m in self.default if m != model)

    def _of(self, rules: Mapping[str, tuple[str, ...]], model: str) -> tuple[str, ...]:
        listed = rules.get(model)
        if listed is None:
            listed = tuple(other for other in rules.get("*", ()) if other != model)
        return listed[: self.most]


# Statuses that speak of the engine, its key or its load, not of the request.
_OF_ENGINE = frozenset({401, 403, 404, 408, 429})
# The request's own time is over, or nobody is there to try.
_FINAL_CODES = frozenset({"deadline_exceeded", "shutting_down"})
_CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_CONTEXT = re.compile(
    r"context (?:length|window|size)|context_length_exceeded|maximum model length"
    r"|prompt is too long|input (?:is|was) too long|too many (?:input )?tokens"
    r"|exceeds? the (?:available )?context|longer than the maximum"
)
_POLICY_CODES = frozenset({"content_policy_violation", "content_filter"})
_POLICY = re.compile(
    r"content[ _](?:policy|filter|management policy)|responsibleaipolicyviolation"
    r"|safety system|flagged by .{0,40}moderation"
)


def failure_of(error: HttpError) -> Failure | None:
    """What kind of failure an error is; None: the request itself is at fault, or its time over."""
    if error.code in _FINAL_CODES:
        return None
    if error.status in (400, 413, 422) or error.status >= 500:
        text = error.message.lower()
        if error.code in _CONTEXT_CODES or _CONTEXT.search(text):
            return Failure.CONTEXT_WINDOW
        if error.code in _POLICY_CODES or _POLICY.search(text):
            return Failure.CONTENT_POLICY
    if error.status >= 500 or error.status in _OF_ENGINE:
        return Failure.GENERAL
    return None
