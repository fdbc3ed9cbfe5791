"""How long one engine iteration and one embedding call take: affine models and their constants.

LLM iteration: ``T = c0 + a*p + b*n + g*C`` for p prefill tokens in the step, n decoding sequences
and C tokens of their context. Embedding call: ``S = s0 + alpha*tokens``. The constants of 70B are
fitted to the measurements that SplitwiseSim publishes (research: decode within 6 %, prefill within
8 to 18 % in the median, up to 40 % at the ends of the range).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sage_prefect.common.errors import SettingsError, UnknownNameError


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Constants of one LLM engine, in seconds.

    Raises:
        SettingsError: a constant is negative, or an iteration would take no time.
    """

    c0: float
    """Fixed cost of an iteration."""
    a: float
    """Per prefill token."""
    b: float
    """Per decoding sequence."""
    g: float
    """Per token of context of the decoding sequences."""
    kv_tokens: int = 1_000_000
    """Tokens that the KV cache holds."""
    source: str = ""

    def __post_init__(self) -> None:
        if min(self.c0, self.a, self.b, self.g) < 0 or self.c0 + self.b <= 0:
            raise SettingsError(
                f"step profile c0={self.c0}, a={self.a}, b={self.b}, g={self.g}: constants must "
                "not be negative, and c0 + b must be above 0."
            )

    def scaled(self, speed: float) -> StepProfile:
        """The same engine on hardware of another speed (0.5: half as fast)."""
        if not speed > 0:
            raise SettingsError(f"engine speed {speed} must be above 0.")
        return replace(
            self, c0=self.c0 / speed, a=self.a / speed, b=self.b / speed, g=self.g / speed
        )


@dataclass(frozen=True, slots=True)
class EmbeddingProfile:
    """Constants of one embedding engine, in seconds."""

    s0: float
    """Fixed cost of a call."""
    alpha: float
    """Per token (of the padded batch, if the engine pads)."""
    padded: bool = False
    source: str = ""

    def scaled(self, speed: float) -> EmbeddingProfile:
        """The same engine on hardware of another speed."""
        if not speed > 0:
            raise SettingsError(f"engine speed {speed} must be above 0.")
        return replace(self, s0=self.s0 / speed, alpha=self.alpha / speed)

    def service_s(self, lengths: tuple[int, ...]) -> float:
        """Seconds of one call over inputs of these lengths in tokens."""
        tokens = max(lengths) * len(lengths) if self.padded and lengths else sum(lengths)
        return self.s0 + self.alpha * tokens


_FIT = "fit to SplitwiseSim's llama2-70b"
_MEASURED = "measured: GPU work alone, decision 0013"
_ASSUMED = "assumed from published ITL of 10 to 15 ms"
STEP_PROFILES: dict[str, StepProfile] = {
    "h100-70b": StepProfile(29.9e-3, 65e-6, 0.209e-3, 1.62e-7, 1_000_000, f"{_FIT}, H100 TP8"),
    "a100-70b": StepProfile(44.1e-3, 151e-6, 0.194e-3, 3.24e-7, 1_000_000, f"{_FIT}, A100 TP8"),
    "h100-70b-tp4": StepProfile(28.8e-3, 89e-6, 0.266e-3, 0.93e-7, 400_000, f"{_FIT}, H100 TP4"),
    "h100-8b": StepProfile(9.0e-3, 20e-6, 0.05e-3, 0.4e-7, 450_000, _ASSUMED),
    "h200-8b": StepProfile(4.29e-3, 22.7e-6, 14.9e-6, 0.29e-7, 900_000, _MEASURED),
    "cpu-small": StepProfile(15e-3, 2.5e-3, 4e-3, 1e-6, 16_384, "assumed: 400 prompt tokens/s"),
}
EMBEDDING_PROFILES: dict[str, EmbeddingProfile] = {
    "gpu-padded": EmbeddingProfile(4e-3, 4e-6, True, "research 1.6, synthetic"),
    "gpu-ragged": EmbeddingProfile(4e-3, 4e-6, False, "research 1.6, synthetic"),
    "h200-minilm": EmbeddingProfile(1.2e-3, 0.093e-6, True, "measured, decision 0013"),
    "cpu": EmbeddingProfile(8e-3, 160e-6, True, "assumed: 40 x the GPU's time per token"),
}


def step_profile(name: str) -> StepProfile:
    """The LLM profile of this name.

    Raises:
        UnknownNameError: lists the known ones.
    """
    if name not in STEP_PROFILES:
        raise UnknownNameError("step profile", name, STEP_PROFILES)
    return STEP_PROFILES[name]


def embedding_profile(name: str) -> EmbeddingProfile:
    """The embedding profile of this name.

    Raises:
        UnknownNameError: lists the known ones.
    """
    if name not in EMBEDDING_PROFILES:
        raise UnknownNameError("embedding profile", name, EMBEDDING_PROFILES)
    return EMBEDDING_PROFILES[name]
