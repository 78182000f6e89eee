"""Reads measured kernel tables: DIR/<gpu>/<family>/<source>/<version>/<name>_perf.parquet, aiconfigurator's layout."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.domain.base import InputError
from planner.formulas.arrays import BoolArray, FloatArray
from planner.formulas.operators.coefficients import TableSource

GPU_OF_DIRECTORY = {
    "a100_sxm": "A100-SXM-80GB",
    "h100_sxm": "H100-SXM-80GB",
    "h200_sxm": "H200-SXM-141GB",
    "l40s": "L40S",
    "b200_sxm": "B200",
}
"""Canonical GPU names of the tables' directories."""

MS_TO_S = 1e-3


class KernelTable(NamedTuple):
    """One measured table; latency in seconds, all columns of one length."""

    source: TableSource
    numbers: dict[str, FloatArray]
    labels: dict[str, NDArray[np.str_]]

    @property
    def latency_s(self) -> FloatArray:
        """Measured time of each row [s]."""
        return self.numbers["latency"]

    def where(self, keep: BoolArray) -> "KernelTable":
        """The rows that `keep` marks."""
        return KernelTable(
            source=self.source,
            numbers={name: column[keep] for name, column in self.numbers.items()},
            labels={name: column[keep] for name, column in self.labels.items()},
        )


def gpu_directories(directory: Path) -> dict[str, Path]:
    """Canonical GPU name -> its folder of tables; InputError where there is none."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory of kernel tables")
    found = {
        name: directory / folder for folder, name in GPU_OF_DIRECTORY.items() if (directory / folder).is_dir()
    }
    if not found:
        legal = ", ".join(sorted(GPU_OF_DIRECTORY))
        raise InputError(f"{directory}: holds none of the GPU folders {legal}")
    return found


def _version_key(version: str) -> tuple[int, ...]:
    """Numeric order of release names; development builds sort first."""
    if "dev" in version:
        return ()
    return tuple(int(part) for part in re.findall(r"\d+", version))


def table_paths(gpu_directory: Path, family: str, source: str, name: str) -> list[Path]:
    """Every version of one table, newest first; empty where it was not measured."""
    paths = (gpu_directory / family / source).glob(f"*/{name}_perf.parquet")
    return sorted(paths, key=lambda path: _version_key(path.parent.name), reverse=True)


def read_table(path: Path, root: Path) -> KernelTable:
    """One table as arrays, rows without a finite positive latency left out.

    Raises InputError where the file is not readable parquet or has no latency column.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    numbers: dict[str, FloatArray] = {}
    labels: dict[str, NDArray[np.str_]] = {}
    for name in frame.columns:
        if pd.api.types.is_numeric_dtype(frame[name]):
            numbers[name] = frame[name].to_numpy(dtype=np.float64)
        else:
            labels[name] = frame[name].to_numpy(dtype=np.str_)
    if "latency" not in numbers:
        raise InputError(f"{path}: has no latency column; its columns are {', '.join(frame.columns)}")
    numbers["latency"] = numbers["latency"] * MS_TO_S
    keep = np.isfinite(numbers["latency"]) & (numbers["latency"] > 0)
    if not keep.any():
        raise InputError(f"{path}: has no row with a positive latency")
    source = TableSource(
        path=path.relative_to(root).as_posix(), engine_version=path.parent.name, rows=int(keep.sum())
    )
    return KernelTable(source=source, numbers=numbers, labels=labels).where(keep)


def newest_table(gpu_directory: Path, family: str, source: str, name: str) -> KernelTable | None:
    """The newest version of one table, or None where it was not measured."""
    paths = table_paths(gpu_directory, family, source, name)
    return read_table(paths[0], gpu_directory.parent) if paths else None
