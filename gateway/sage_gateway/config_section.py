"""Reading of a mapping from YAML with errors that name the key, its value and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sage_prefect.common.errors import SettingsError, near_name


class Section:
    """A mapping at ``path`` of the file; each key is read once by type.

    Raises:
        SettingsError: from every method, when the value is of another type or out of range.
    """

    def __init__(self, value: Any, path: str) -> None:
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise SettingsError(
                f"{path or 'the file'} is a {_kind(value)}, not a mapping.",
                hint="Write `key: value` lines below it.",
            )
        self.path = path
        self._values: dict[str, Any] = {str(key): item for key, item in value.items()}
        self._read: set[str] = set()

    def name(self, key: str) -> str:
        """Full name of a key, for messages."""
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def any(self, key: str) -> Any:
        self._read.add(key)
        return self._values.get(key)

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self.any(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, value, "a text")
        return value

    def required_text(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise SettingsError(f"{self.name(key)} is missing.", hint="It must be a text.")
        return value

    def choice(self, key: str, known: Iterable[str], default: str) -> str:
        value = self.text(key, default)
        assert value is not None
        options = list(known)
        if value not in options:
            raise SettingsError(
                f"{self.name(key)}={value!r} is not known.",
                hint=f"{near_name(value, options)}Known: {', '.join(options)}.",
            )
        return value

    def integer(self, key: str, default: int, *, least: int = 0, most: int = 1 << 40) -> int:
        value = self.any(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(key, value, f"a whole number from {least} to {most}")
        return value

    def seconds(self, key: str, default: float, *, least: float = 0.001) -> float:
        value = self.any(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(key, value, "a number of seconds")
        if not least <= value <= 86_400:
            raise self._wrong(key, value, f"a number of seconds from {least:g} to 86400")
        return float(value)

    def number(self, key: str, default: float, *, least: float = 0.0, most: float = 1e9) -> float:
        value = self.any(key)
        if value is None:
            return default
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:  # NaN is in no range
            raise self._wrong(key, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.any(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def items(self, key: str) -> list[Any]:
        value = self.any(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return value

    def section(self, key: str) -> Section:
        return Section(self.any(key), self.name(key))

    def names(self) -> list[str]:
        """The keys that are there."""
        return list(self._values)

    def unread(self) -> list[str]:
        """Keys that are set but that nobody has read so far."""
        return [key for key in self._values if key not in self._read]

    def refuse_unread(self) -> None:
        """An unknown key is an error that names the near one."""
        for key in self.unread():
            known = sorted(self._read)
            raise SettingsError(
                f"unknown key {self.name(key)!r}.",
                hint=f"{near_name(key, known)}Known here: {', '.join(known)}.",
            )

    def _wrong(self, key: str, value: Any, expected: str) -> SettingsError:
        # A secret may stand where it should not: show only short plain values of other types.
        shown = repr(value) if isinstance(value, (int, float, bool)) else f"a {_kind(value)}"
        return SettingsError(f"{self.name(key)} is {shown}, not {expected}.")


def _kind(value: Any) -> str:
    names = {str: "text", list: "list", dict: "mapping", bool: "yes/no value", int: "number"}
    return names.get(type(value), type(value).__name__)
