"""Who asks: tenants of unequal size. Real clients are few and heavy (Zipf, exponent about 1.2)."""

from __future__ import annotations

import numpy as np

from sage_prefect.common.errors import SettingsError


class ZipfTenants:
    """``count`` tenants; the k-th asks in proportion to ``k ** -exponent``.

    Args:
        prefix: of the tenants' names: ``<prefix>-000``, the heaviest first.

    Raises:
        SettingsError: no tenants, or a negative exponent.
    """

    def __init__(self, count: int, exponent: float = 1.2, prefix: str = "tenant") -> None:
        if count < 1 or not exponent >= 0:
            raise SettingsError(
                f"tenants: count {count} must be at least 1, exponent {exponent} at least 0."
            )
        weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
        self.shares = weights / weights.sum()
        self.names = tuple(f"{prefix}-{i:03d}" for i in range(count))
        self._cumulative = np.cumsum(self.shares)

    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        """``count`` names."""
        at = np.searchsorted(self._cumulative, rng.random(count), side="right")
        last = len(self.names) - 1
        return [self.names[min(int(i), last)] for i in at]
