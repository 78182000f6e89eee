"""Fields of a result, read strictly: a figure is a figure, and whatever nobody reads is kept."""

import math
from collections.abc import Mapping
from typing import cast

from pydantic import JsonValue

from planner.catalog.nearest import shown
from planner.domain.base import InputError
from planner.domain.benchmark import LatencySummary

MOST_KEPT = 5_000
"""Fields of one load that are kept unread; the largest reports have some hundred."""
LONGEST_TEXT = 2_000
MOST_VISITED = 100_000
LONGEST_S = 1e6
SHORTEST_S = 1e-7
"""A latency below is in another unit, or none."""
MS = 1e-3


class Fields:
    """An object of a result; it remembers what was read."""

    def __init__(self, document: Mapping[str, JsonValue], where: str) -> None:
        """`where` names the file, and the load in it, in messages."""
        self._document = document
        self.where = where
        self._read: set[str] = set()

    @property
    def whole(self) -> Mapping[str, JsonValue]:
        """The object itself; nothing of it counts as read."""
        return self._document

    def value(self, *keys: str) -> JsonValue:
        """What stands under nested keys; None where one is missing."""
        self._read.add(".".join(keys))
        found: JsonValue = cast(JsonValue, self._document)
        for key in keys:
            if not isinstance(found, dict):
                return None
            found = found.get(key)
        return found

    def text(self, *keys: str) -> str:
        """A text; empty where there is none."""
        found = self.value(*keys)
        return found.strip() if isinstance(found, str) else ""

    def number(self, *keys: str, low: float = 0.0, high: float = 1e12) -> float | None:
        """A figure from `low` to `high`; None where there is none.

        Raises:
            InputError: something else stands there.
        """
        found = self.value(*keys)
        if found is None:
            self._check_path(keys)
            return None
        if isinstance(found, (int, float)) and not isinstance(found, bool) and low <= found <= high:
            return float(found)
        raise InputError(
            f"{self.where}: {'.'.join(keys)} is {shown(str(found))}; a number from {low:g} to {high:g} is needed"
        )

    def _check_path(self, keys: tuple[str, ...]) -> None:
        """Raises InputError where something else stands in the place of an object that holds figures."""
        for depth in range(1, len(keys)):
            found = self.value(*keys[:depth])
            if found is None:
                return
            if not isinstance(found, dict):
                raise InputError(
                    f"{self.where}: {'.'.join(keys[:depth])} is {shown(str(found))}; an object with "
                    f"{keys[depth]} in it is needed"
                )

    def needed(self, *keys: str, low: float = 0.0, high: float = 1e12) -> float:
        """The same, of a field that every such file has.

        Raises:
            InputError: it is missing, or is something else.
        """
        found = self.number(*keys, low=low, high=high)
        if found is None:
            raise InputError(
                f"{self.where}: {'.'.join(keys)} is missing: the file is cut short, or of another tool"
            )
        return found

    def latency_s(self, *keys: str, unit_s: float = 1.0) -> float | None:
        """A latency [s] of a field in `unit_s`; None where nothing was measured, which tools also write as 0."""
        found = self.number(*keys, high=LONGEST_S / unit_s)
        if not found:
            return None
        if found * unit_s < SHORTEST_S:
            raise InputError(
                f"{self.where}: {'.'.join(keys)} is {found:g}: too short for a latency; which unit is it?"
            )
        return found * unit_s

    def figures(self, *keys: str) -> list[float]:
        """A list of figures; empty where there is none.

        Raises:
            InputError: something in it is no figure from 0 to a million.
        """
        found = self.value(*keys)
        if not isinstance(found, list):
            return []
        for item in found:
            if isinstance(item, bool) or not isinstance(item, (int, float)) or not 0 <= item <= LONGEST_S:
                raise InputError(
                    f"{self.where}: {'.'.join(keys)} has {shown(str(item))} in it; numbers from 0 to 1e+06 are needed"
                )
        return [float(item) for item in found if isinstance(item, (int, float))]

    def unread(self) -> dict[str, JsonValue]:
        """Every other text, figure and truth value by its path; lists and missing values are left out."""
        kept: dict[str, JsonValue] = {}
        waiting: list[tuple[str, JsonValue]] = [("", cast(JsonValue, self._document))]
        for _visit in range(MOST_VISITED):
            if not waiting or len(kept) >= MOST_KEPT:
                break
            path, value = waiting.pop()
            if isinstance(value, dict):
                prefix = f"{path}." if path else ""
                waiting += [(f"{prefix}{key}", item) for key, item in reversed(value.items())]
            elif isinstance(value, str) and path not in self._read:
                kept[path] = value[:LONGEST_TEXT]
            elif isinstance(value, (bool, int, float)) and path not in self._read and _is_plain(value):
                kept[path] = value
        return kept


def _is_plain(value: float) -> bool:
    """False for whole numbers that no other program reads."""
    return abs(value) < 10**18 if isinstance(value, int) else math.isfinite(value)


def summary(mean_s: float | None, percentiles_s: Mapping[str, float | None]) -> LatencySummary | None:
    """Mean and the percentiles that are known; None without a mean."""
    if mean_s is None:
        return None
    return LatencySummary(
        mean_s=mean_s,
        percentiles_s={name: value for name, value in percentiles_s.items() if value is not None},
    )
