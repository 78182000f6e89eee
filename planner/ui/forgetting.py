"""Drops remembered answers once a fit has changed what they rest on."""

from pathlib import Path

import streamlit as st

from planner.calibrate.store import GPU_FITS_FOLDER, OPERATORS_FOLDER, calibration_directories

_Files = frozenset[tuple[Path, int]]
_FOLDERS = (".", OPERATORS_FOLDER, GPU_FITS_FOLDER)
_last_seen: list[_Files] = []
"""Of the whole server: its sessions share their answers."""


def forget_what_was_refitted() -> None:
    """Clears every answer where a calibration file came, went or changed since the last click."""
    files = _calibration_files()
    if _last_seen and _last_seen[0] != files:
        st.cache_resource.clear()
    _last_seen[:] = [files]


def _calibration_files() -> _Files:
    """Every file of coefficients with the time of its last change; a folder that cannot be read has none."""
    found = []
    for directory in calibration_directories():
        for folder in _FOLDERS:
            try:
                found += [(path, path.stat().st_mtime_ns) for path in (directory / folder).glob("*.json")]
            except OSError:
                continue
    return frozenset(found)
