"""Reading kernel tables: which version, which rows, and what a broken file says."""

from pathlib import Path

import pandas as pd
import pytest

from planner.calibrate.tables import gpu_directories, newest_table, read_table, table_paths
from planner.domain.base import InputError


def write(root: Path, version: str, latency: list[float], family: str = "gemm") -> Path:
    path = root / "h100_sxm" / family / "vllm" / version / f"{family}_perf.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame({"gemm_dtype": "fp8", "m": range(len(latency)), "latency": latency}).to_parquet(path)
    return path


def test_newest_version_is_found_by_number_not_by_spelling(tmp_path: Path) -> None:
    for version in ("0.9.0", "0.24.0", "0.1.dev19262", "0.14.0"):
        write(tmp_path, version, [1.0])
    folder = tmp_path / "h100_sxm"
    found = [path.parent.name for path in table_paths(folder, "gemm", "vllm", "gemm")]
    assert found == ["0.24.0", "0.14.0", "0.9.0", "0.1.dev19262"]
    table = newest_table(folder, "gemm", "vllm", "gemm")
    assert table is not None
    assert table.source.engine_version == "0.24.0"
    assert table.source.path == "h100_sxm/gemm/vllm/0.24.0/gemm_perf.parquet"
    assert newest_table(folder, "moe", "vllm", "moe") is None


def test_latency_becomes_seconds_and_useless_rows_go(tmp_path: Path) -> None:
    path = write(tmp_path, "1.0", [2.0, float("nan"), 0.0, -1.0, float("inf")])
    table = read_table(path, tmp_path)
    assert table.latency_s.tolist() == [2e-3]
    assert table.numbers["m"].tolist() == [0.0]
    assert table.labels["gemm_dtype"].tolist() == ["fp8"]
    assert table.source.rows == 1


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 this is no parquet")
    with pytest.raises(InputError, match=r"broken\.parquet: not a readable parquet file"):
        read_table(broken, tmp_path)
    no_latency = tmp_path / "no_latency.parquet"
    pd.DataFrame({"m": [1]}).to_parquet(no_latency)
    with pytest.raises(InputError, match="no latency column; its columns are m"):
        read_table(no_latency, tmp_path)
    with pytest.raises(InputError, match="no row with a positive latency"):
        read_table(write(tmp_path, "1.0", [0.0]), tmp_path)


def test_directory_must_hold_known_gpus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        gpu_directories(tmp_path / "absent")
    with pytest.raises(InputError, match="holds none of the GPU folders a100_sxm"):
        gpu_directories(tmp_path)
    (tmp_path / "l40s").mkdir()
    assert list(gpu_directories(tmp_path)) == ["L40S"]
