"""Lists of module names as quantised checkpoints write them: plain names, globs and `re:` patterns."""

import re
from collections.abc import Iterable
from fnmatch import translate

from planner.domain.base import InputError

REPEATS_MAX = 6
"""A pattern is data from a file: more open repetitions could take minutes to fail."""


class ModulePatterns:
    """A set of patterns that says whether a module's name is among them.

    A plain name covers the module it names and everything below it, wherever it stands in the full name.
    """

    def __init__(self, patterns: Iterable[str], where: str) -> None:
        self._literals: set[str] = set()
        self._prefixes: set[str] = set()
        self._expressions: list[re.Pattern[str]] = []
        for raw in patterns:
            self._add(raw, where)
        texts = [*self._literals, *self._prefixes, *(e.pattern for e in self._expressions)]
        self.name_layers = any(re.search(r"\d", text) for text in texts)
        """True where the patterns may treat one layer unlike another."""

    def __bool__(self) -> bool:
        return bool(self._literals or self._prefixes or self._expressions)

    def _add(self, raw: str, where: str) -> None:
        if raw.startswith("re:"):
            self._expressions.append(_compiled(raw.removeprefix("re:"), where))
            return
        pattern = canonical(raw)
        if not any(mark in pattern for mark in "*?["):
            self._literals.add(pattern.rstrip("."))
        elif not any(mark in pattern[:-1] for mark in "*?["):
            self._prefixes.add(pattern[:-1])
        else:
            self._expressions.append(re.compile(translate(pattern)))
            self._expressions.append(re.compile(translate(f"{pattern}.*")))

    def match(self, name: str) -> bool:
        """True where `name` (canonical, such as `model.layers.3.mlp.down_proj`) is covered."""
        parts = name.split(".")
        if self._literals:
            for first in range(len(parts)):
                for last in range(first + 1, len(parts) + 1):
                    if ".".join(parts[first:last]) in self._literals:
                        return True
        if self._prefixes and any(name[:end] in self._prefixes for end in range(len(name) + 1)):
            return True
        return any(expression.match(name) for expression in self._expressions)


def canonical(name: str) -> str:
    """A module name without the wrapper's part, so that text-only and multimodal checkpoints read alike.

    >>> canonical("model.language_model.layers.0.mlp"), canonical("backbone.layers.4.mixer")
    ('model.layers.0.mlp', 'model.layers.4.mixer')
    """
    name = name.replace("language_model.", "")
    return "model." + name.removeprefix("backbone.") if name.startswith("backbone.") else name


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    open_repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
    repeated_group = re.search(r"(?<!\\)\)[*+{]", pattern)
    if len(pattern) > 500 or open_repeats > REPEATS_MAX or repeated_group:
        raise InputError(
            f"model config {where}: module pattern {pattern[:60]!r} is too involved to be followed"
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"model config {where}: module pattern {pattern[:60]!r} is no regular expression ({error})"
        ) from None
