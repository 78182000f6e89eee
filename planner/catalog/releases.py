"""When vLLM's releases came out, for runs that say when they were measured but not on which release."""

from datetime import date
from functools import cache
from pathlib import Path
from typing import NamedTuple

from planner.catalog.paths import data_dir
from planner.catalog.table import Columns, Row, read_rows

RELEASES_FILE = "vllm_releases.csv"
RELEASE_COLUMNS = Columns(("version", "released", "source"))


class Release(NamedTuple):
    """A vLLM release on the package index."""

    version: str
    released: date


@cache
def releases() -> tuple[Release, ...]:
    """The releases of `data/vllm_releases.csv`, oldest first. Raises InputError on a malformed row."""
    return tuple(sorted(read_releases(data_dir() / RELEASES_FILE), key=lambda release: release.released))


def read_releases(path: Path) -> tuple[Release, ...]:
    """Releases of a table in the columns of `data/README.md`, in its order. Raises InputError (file, line, column)."""
    return tuple(_release(row) for row in read_rows(path, RELEASE_COLUMNS))


def _release(row: Row) -> Release:
    version, released, _source = (row.text(column) for column in RELEASE_COLUMNS.required)
    try:
        return Release(version, date.fromisoformat(released))
    except ValueError:
        raise row.error("released", "an ISO date (2026-08-20)") from None


def newest_on(day: date) -> str:
    """The newest release of a day; empty before the first one listed."""
    out = [release.version for release in releases() if release.released <= day]
    return out[-1] if out else ""
