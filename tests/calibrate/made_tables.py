"""Kernel tables made from known coefficients, for fits to find them again."""

from pathlib import Path

import numpy as np
import pandas as pd

from planner.calibrate.store import operators_for
from planner.calibrate.tables import KernelTable
from planner.catalog.load import find_gpu
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Gpu
from planner.formulas.arrays import FloatArray
from planner.formulas.operators import GpuOperators, gemm_s
from planner.formulas.operators.coefficients import TableSource

H100 = find_gpu("H100-SXM-80GB")


def truth() -> GpuOperators:
    """Coefficients to make tables from: H100's without the measured surface."""
    ops = operators_for(H100, (shipped_calibration_dir(),))
    flat = {d: fit.model_copy(update={"surface": None}) for d, fit in ops.coefficients.gemm.items()}
    return ops._replace(coefficients=ops.coefficients.model_copy(update={"gemm": flat}))


def table(latency_s: FloatArray, numbers: dict[str, FloatArray], labels: dict[str, str]) -> KernelTable:
    return KernelTable(
        source=TableSource(path="made/up.parquet", engine_version="0", rows=latency_s.size),
        numbers={**numbers, "latency": latency_s},
        labels={name: np.full(latency_s.shape, label) for name, label in labels.items()},
    )


def grid(*axes: list[float]) -> list[FloatArray]:
    return [column.ravel() for column in np.meshgrid(*(np.array(axis) for axis in axes), indexing="ij")]


def noisy(times: FloatArray, size: float = 0.02) -> FloatArray:
    return times * np.exp(np.random.default_rng(1).normal(0.0, size, times.shape))


def gemm_table(dtype: WeightDtype, label: str) -> KernelTable:
    widths = [512.0, 1024, 2048, 4096, 7168, 16384]
    m, n, k = grid([1.0, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], widths, widths)
    times = np.array(
        [gemm_s(np.array([a]), int(b), int(c), dtype, truth())[0] for a, b, c in zip(m, n, k, strict=True)]
    )
    return table(noisy(times), {"m": m, "n": n, "k": k}, {"gemm_dtype": label})


def write_tables(root: Path, folder: str, gpu: Gpu) -> None:
    """The least a GPU needs: bf16 linear layers and 16-bit attention, at the roofline plus 10 us."""
    widths = [512.0, 1024, 2048, 4096, 8192]
    m, n, k = grid([1.0, 8, 64, 256, 512, 2048, 8192], widths, widths)
    peak, bytes_per_s = 312e12, gpu.memory_bandwidth_bytes_per_s
    gemm = pd.DataFrame({"m": m, "n": n, "k": k, "gemm_dtype": "bfloat16"})
    gemm["latency"] = 1e3 * (np.maximum(2 * m * n * k / peak, 2 * n * k / bytes_per_s) * 1.25 + 1e-5)
    save(gemm, root / folder / "gemm" / "vllm" / "0.1.0" / "gemm_perf.parquet")
    batch, tokens, heads, kv_heads = grid([1.0, 8, 64], [127.0, 1023, 8191], [8.0, 16, 32], [1.0, 4, 8])
    attention = pd.DataFrame(
        {
            **{"batch_size": batch, "step": tokens, "isl": tokens, "num_heads": heads},
            **{"num_key_value_heads": kv_heads, "head_dim": 128.0},
            **{"kv_cache_dtype": "bfloat16", "kernel_source": "vllm_made_up"},
        }
    )
    for name in ("generation_attention", "context_attention"):
        attention["latency"] = 1e3 * (batch * tokens * kv_heads * 512 / bytes_per_s * 2 + 2e-5)
        save(attention, root / folder / "attention" / "vllm" / "0.1.0" / f"{name}_perf.parquet")


def save(frame: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path)
