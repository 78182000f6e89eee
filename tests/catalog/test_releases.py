"""The days on which vLLM's releases came out: complete, in order, and asked by day."""

from datetime import date, timedelta
from itertools import pairwise

import pytest

from planner.catalog.releases import newest_on, releases
from planner.formulas.engine_defaults import NEWEST_TESTED_VERSION, OLDEST_VERSION, parse_version

MINORS = range(8, 34)


def test_versions_and_days_ascend_together() -> None:
    for older, newer in pairwise(releases()):
        assert older.released < newer.released
        assert parse_version(older.version) < parse_version(newer.version)


def test_every_release_that_the_rules_know_is_listed() -> None:
    """From the first with the V1 engine to the newest tested, no minor release left out."""
    versions = [parse_version(release.version) for release in releases()]
    assert versions[0] == OLDEST_VERSION
    assert versions[-1] == parse_version(NEWEST_TESTED_VERSION)
    assert {version.minor for version in versions} == set(MINORS)
    assert all(version.since(minor) for version, minor in zip(versions, (8,) * len(versions), strict=True))
    for minor in MINORS:
        patches = [version.patch for version in versions if version.minor == minor]
        assert patches == list(range(len(patches))), f"0.{minor}"


def test_a_version_is_written_as_the_engine_writes_it() -> None:
    assert all(str(parse_version(release.version)) == release.version for release in releases())


@pytest.mark.parametrize(
    ("day", "version"),
    [
        ("2025-03-17", ""),
        ("2025-03-18", "0.8.0"),
        ("2025-10-03", "0.10.2"),
        ("2025-10-04", "0.11.0"),
        ("2025-11-19", "0.11.1"),
        ("2025-11-20", "0.11.2"),
        ("2025-12-02", "0.11.2"),
        ("2026-01-20", "0.14.0"),
        ("2030-01-01", NEWEST_TESTED_VERSION),
    ],
)
def test_the_newest_of_a_day(day: str, version: str) -> None:
    assert newest_on(date.fromisoformat(day)) == version


def test_a_release_is_the_newest_from_its_day_to_the_next_ones() -> None:
    for older, newer in pairwise(releases()):
        assert newest_on(older.released) == older.version
        assert newest_on(newer.released - timedelta(days=1)) == older.version
