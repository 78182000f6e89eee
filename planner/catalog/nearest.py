"""The nearest legal name, for messages about a name nobody knows."""

import difflib
from collections.abc import Iterable

from planner.domain.base import InputError


def fold(text: str) -> str:
    """Letters and digits in lower case: `"H100_SXM-80GB"` and `"h100 sxm 80gb"` are one name.

    >>> fold("NVIDIA H100 80GB HBM3")
    'nvidiah10080gbhbm3'
    """
    return "".join(c for c in text.casefold() if c.isalnum())


def harmless(text: str) -> str:
    """Text that a terminal shows and does not obey: `?` for every character that is not printable.

    >>> harmless("\\x1b[2J on a4")
    '?[2J on a4'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def shown(text: str) -> str:
    """A user's text as it may stand in a one-line message: no control characters, at most 60 characters.

    >>> shown("two\\nlines")
    'two lines'
    """
    line = harmless(" ".join(text.split()))
    return line if len(line) <= 60 else f"{line[:57]}..."


def nearest(word: str, names: Iterable[str], *, limit: int = 3) -> list[str]:
    """Names that contain the word, then names spelled alike; at most `limit`.

    >>> nearest("a100", ["A100-SXM-40GB", "H100-NVL", "A100-SXM-80GB"])
    ['A100-SXM-40GB', 'A100-SXM-80GB']
    >>> nearest("summarization", ["chat", "summarisation"])
    ['summarisation']
    """
    spelled = {fold(name): name for name in names}
    key = fold(word)
    containing = [folded for folded in spelled if key and key in folded]
    alike = difflib.get_close_matches(key, spelled, n=limit)
    return [spelled[folded] for folded in dict.fromkeys(containing + alike)][:limit]


def unknown(kind: str, word: str, names: Iterable[str]) -> InputError:
    """The error for a name that is not known: the nearest names, or the first few where nothing is near.

    >>> str(unknown("preset", "chatt", ["chat", "rag"]))
    'unknown preset "chatt"; did you mean chat?'
    """
    legal = list(names)
    near = nearest(word, legal)
    if near:
        return InputError(f'unknown {kind} "{shown(word)}"; did you mean {" or ".join(near)}?')
    listed = ", ".join(legal[:8]) + (", ..." if len(legal) > 8 else "")
    return InputError(f'unknown {kind} "{shown(word)}"; known: {listed or "none"}')
