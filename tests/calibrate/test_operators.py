"""The whole fit: gaps filled and marked, progress told, errors documented as they are, and honest on real tables."""

from pathlib import Path

import numpy as np
import pytest

from planner.calibrate.donors import complete_all_reduce, complete_gemm, complete_mla, complete_moe
from planner.calibrate.fit_gemm import fit_gemm
from planner.calibrate.operators import fit_operators, fit_report, fit_tables
from planner.calibrate.report import error_table, main
from planner.calibrate.store import operators_for, operators_path, read_coefficients
from planner.calibrate.tables import newest_table, read_table, table_paths
from planner.catalog.load import find_gpu
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.base import InputError
from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Interconnect
from planner.formulas.engine_defaults import parse_version
from planner.formulas.operators import Origin, RankGroup, all_reduce_s, gemm_s
from tests.calibrate.made_tables import H100, write_tables

SHARED = Path(__file__).resolve().parents[3] / "shared" / "operators"
needs_tables = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the kernel tables (../shared/operators) are not beside this checkout"
)


def test_gaps_are_filled_from_siblings_or_marked_assumed(tmp_path: Path) -> None:
    a100 = find_gpu("A100-SXM-80GB")
    write_tables(tmp_path, "a100_sxm", a100)
    own = fit_tables(tmp_path / "a100_sxm", a100)
    assert not own.moe
    gemm = complete_gemm(own, [own])
    assert set(gemm) >= set(WeightDtype) - {WeightDtype.FP16, WeightDtype.AWQ, WeightDtype.GPTQ}
    assert gemm[WeightDtype.INT4].small_evidence.origin is Origin.DONOR
    assert "assumed" in gemm[WeightDtype.INT4].small_evidence.note
    assert gemm[WeightDtype.INT8].small_evidence.origin is Origin.ASSUMED
    assert complete_mla(own, [own]).decode_evidence.origin is Origin.ASSUMED
    assert complete_all_reduce(own, [own], nvlink=True).nccl[0].evidence.origin is Origin.ASSUMED
    moe = complete_moe(own, [own])
    assert moe[WeightDtype.BF16].tensor_parallel_evidence.origin is Origin.ASSUMED


def test_fit_operators_reports_progress_and_names_what_is_missing(tmp_path: Path) -> None:
    a100 = find_gpu("A100-SXM-80GB")
    write_tables(tmp_path, "a100_sxm", a100)
    seen: list[tuple[str, float]] = []
    (found,) = fit_operators(tmp_path, progress=lambda what, share: seen.append((what, share)))
    assert seen == [("A100-SXM-80GB", 0.0), ("done", 1.0)]
    assert [source.engine_version for source in found.tables] == ["0.1.0"] * 3
    rows = fit_report([found])
    assert {row.operator for row in rows} >= {"linear layer", "experts", "decode attention", "all-reduce"}
    with pytest.raises(InputError, match="no datasheet of A100-SXM-80GB"):
        fit_operators(tmp_path, gpus={})
    (tmp_path / "a100_sxm" / "gemm" / "vllm" / "0.1.0" / "gemm_perf.parquet").unlink()
    with pytest.raises(InputError, match=r"needs a table gemm/vllm/VERSION/gemm_perf\.parquet"):
        fit_operators(tmp_path)


def test_the_documented_error_table_is_the_committed_one(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m planner.calibrate.report` makes the table in docs/operators.md."""
    assert main([]) == 0
    printed = capsys.readouterr().out.strip()
    paths = sorted((shipped_calibration_dir() / "operators").glob("*.json"))
    assert printed == error_table(fit_report([read_coefficients(path) for path in paths]))
    documented = (shipped_calibration_dir().parent / "docs" / "operators.md").read_text()
    assert printed in documented


def test_a_report_on_nothing_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no coefficients" in capsys.readouterr().err


@pytest.mark.shared
@needs_tables
def test_committed_errors_are_those_of_a_refit() -> None:
    committed = read_coefficients(operators_path(shipped_calibration_dir(), "A100-SXM-80GB"))
    measured = newest_table(SHARED / "a100_sxm", "gemm", "vllm", "gemm")
    assert measured is not None
    refit = fit_gemm(measured, find_gpu("A100-SXM-80GB"))[WeightDtype.BF16]
    stored = committed.gemm[WeightDtype.BF16]
    for name in ("small_evidence", "large_evidence"):
        now, then = getattr(refit, name), getattr(stored, name)
        assert now.rows == then.rows
        assert now.median_ratio == pytest.approx(then.median_ratio, abs=0.003)
        assert now.held_out_median_ratio == pytest.approx(then.held_out_median_ratio, abs=0.003)


@pytest.mark.shared
@needs_tables
def test_committed_coefficients_predict_the_table_as_well_as_they_say() -> None:
    """Evaluates the public function on measured rows, so that fit and prediction cannot part ways."""
    ops = operators_for(H100, (shipped_calibration_dir(),))
    measured = newest_table(SHARED / "h100_sxm", "gemm", "vllm", "gemm")
    assert measured is not None
    column = measured.numbers
    errors = []
    for n, k in ((4096, 4096), (10240, 8192), (7168, 2048), (1536, 7168)):
        rows = (column["n"] == n) & (column["k"] == k) & (measured.labels["gemm_dtype"] == "bfloat16")
        predicted_s = gemm_s(column["m"][rows], n, k, WeightDtype.BF16, ops)
        errors.append(np.abs(predicted_s / measured.latency_s[rows] - 1.0))
    assert np.median(np.concatenate(errors)) < 0.07


@pytest.mark.shared
@needs_tables
@pytest.mark.parametrize(("gpu", "folder"), [("H100-SXM-80GB", "h100_sxm"), ("B200", "b200_sxm")])
def test_committed_all_reduces_are_those_measured_with_each_release(gpu: str, folder: str) -> None:
    """Every message size of every release, but where NCCL's table was faster."""
    ops = operators_for(find_gpu(gpu), (shipped_calibration_dir(),))
    paths = table_paths(SHARED / folder, "comm", "vllm", "custom_allreduce")
    curves = ops.coefficients.nvlink_all_reduce.engine
    assert {curve.engine_version for curve in curves} == {path.parent.name for path in paths}
    for path in paths:
        measured = read_table(path, SHARED)
        in_graph = np.char.find(measured.labels["kernel_source"], "graph") >= 0
        for ranks in (2, 4, 8):
            rows = in_graph & (measured.numbers["num_gpus"] == ranks)
            group = RankGroup(ranks, Interconnect.NVSWITCH, parse_version(path.parent.name))
            predicted_s = all_reduce_s(2.0 * measured.numbers["message_size"][rows], group, ops)
            ratio = predicted_s / measured.latency_s[rows]
            assert (ratio < 1.002).all()
            assert (np.abs(ratio - 1.0) < 0.002).mean() > 0.6
