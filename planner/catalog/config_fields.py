"""Typed access to the fields of a config.json: every value is checked, every complaint names the field."""

from collections.abc import Mapping

from planner.domain.base import InputError

LAYERS_MAX = 1_000
WIDTH_MAX = 1_000_000
TOKENS_MAX = 1_000_000_000


def shown(value: object, limit: int = 60) -> str:
    """A value as one short line of text."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Fields:
    """The fields of one JSON object; a field that is null counts as absent."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values = values
        self.where = where

    def refuse(self, message: str) -> InputError:
        """An error about this object, to be raised."""
        return InputError(f"model config {self.where}: {message}")

    def has(self, name: str) -> bool:
        """True where the field is there and not null."""
        return self.values.get(name) is not None

    def get(self, *names: str) -> object:
        """The first of `names` that is there, or None."""
        return next((self.values[name] for name in names if self.has(name)), None)

    def whole(self, *names: str, default: int | None = None, low: int = 1, high: int = WIDTH_MAX) -> int:
        """A whole number in `[low, high]`; the first of `names` that is there, else `default`."""
        for name in names:
            if self.has(name):
                return self._whole(name, self.values[name], low, high)
        if default is None:
            raise self.refuse(f"{names[0]} is missing")
        return default

    def optional_whole(self, *names: str, low: int = 1, high: int = WIDTH_MAX) -> int | None:
        """As `whole`, None where the field is absent."""
        return self.whole(*names, low=low, high=high) if any(self.has(name) for name in names) else None

    def _whole(self, name: str, value: object, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(f"{name} must be a whole number from {low} to {high}, got {shown(value)}")
        return value

    def number(self, name: str, *, low: float, high: float) -> float:
        """A number in `[low, high]`."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.refuse(f"{name} must be a number from {low} to {high}, got {shown(value)}")
        return float(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if not isinstance(value, bool):
                raise self.refuse(f"{name} must be true or false, got {shown(value)}")
            return value
        return default

    def text(self, *names: str, default: str = "") -> str:
        """A string."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise self.refuse(f"{name} must be a string, got {shown(value)}")
            return value
        return default

    def texts(self, name: str) -> list[str]:
        """A list of strings; empty where the field is absent."""
        value = self._list(name)
        for item in value:
            if not isinstance(item, str):
                raise self.refuse(f"{name} must hold strings only, got {shown(item)}")
        return [item for item in value if isinstance(item, str)]

    def wholes(self, name: str, *, low: int = 0, high: int = WIDTH_MAX) -> list[int]:
        """A list of whole numbers; empty where the field is absent."""
        return [self._whole(f"{name}[{i}]", item, low, high) for i, item in enumerate(self._list(name))]

    def sections(self, name: str) -> list["Fields"]:
        """A list of objects; empty where the field is absent."""
        return [self._object(f"{name}[{i}]", item) for i, item in enumerate(self._list(name))]

    def section(self, name: str) -> "Fields | None":
        """A nested object, None where the field is absent."""
        return self._object(name, self.values[name]) if self.has(name) else None

    def _list(self, name: str) -> list[object]:
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.refuse(f"{name} must be a list, got {shown(value)}")
        return value

    def _object(self, name: str, value: object) -> "Fields":
        if not isinstance(value, dict):
            raise self.refuse(f"{name} must be an object, got {shown(value)}")
        return Fields(value, f"{self.where} ({name})")
