"""`fit operators`: from a directory of kernel tables to the coefficients of every GPU in it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from planner.calibrate.donors import (
    MlaParts,
    TableFits,
    complete_all_reduce,
    complete_context,
    complete_decode,
    complete_gemm,
    complete_linear,
    complete_mla,
    complete_moe,
)
from planner.calibrate.fit_attention import fit_context_attention, fit_decode_attention
from planner.calibrate.fit_collectives import fit_all_reduce
from planner.calibrate.fit_gemm import fit_gemm
from planner.calibrate.fit_latent import fit_bmm, fit_latent_context, fit_latent_decode, fit_linear_attention
from planner.calibrate.fit_moe import fit_moe
from planner.calibrate.tables import KernelTable, gpu_directories, newest_table, read_table, table_paths
from planner.domain.base import InputError
from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Gpu
from planner.formulas.operators.coefficients import Evidence, GemmFit, OperatorCoefficients, TableSource

Progress = Callable[[str, float], None]
"""Called with what is being fitted and the share of the work done."""

NVLINK_RANKS = 8
PCIE_ENGINE_RANKS = 2
"""vLLM uses its own all-reduce over PCIe between two GPUs only (custom_all_reduce.py)."""


class FitRow(NamedTuple):
    """One line of the fit's report."""

    gpu: str
    operator: str
    variant: str
    origin: str
    rows: int
    median_ratio: float | None
    p90_ratio: float | None
    held_out_median_ratio: float | None
    held_out_p90_ratio: float | None
    note: str


class _Tables:
    """The newest tables of one GPU, remembering which were read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sources: list[TableSource] = []

    def find(self, family: str, name: str, source: str = "vllm") -> KernelTable | None:
        """The newest table of a name, or None."""
        table = newest_table(self.directory, family, source, name)
        if table is not None:
            self.sources.append(table.source)
        return table

    def all(self, family: str, name: str) -> list[KernelTable]:
        """Every release's table of a name, oldest first."""
        paths = reversed(table_paths(self.directory, family, "vllm", name))
        tables = [read_table(path, self.directory.parent) for path in paths]
        self.sources += [table.source for table in tables]
        return tables

    def need(self, family: str, name: str) -> KernelTable:
        """The newest table of a name; InputError where there is none."""
        table = self.find(family, name)
        if table is None:
            raise InputError(f"{self.directory}: needs a table {family}/vllm/VERSION/{name}_perf.parquet")
        return table


def _fit_mla(tables: _Tables, gemm: dict[WeightDtype, GemmFit], gpu: Gpu) -> MlaParts:
    bmm = tables.find("mla_bmm", "mla_bmm")
    decode = tables.find("mla", "mla_generation_module")
    context = tables.find("mla", "mla_context_module")
    return MlaParts(
        bmm=None if bmm is None else fit_bmm(bmm, gpu),
        decode=None if decode is None else fit_latent_decode(decode, gpu),
        context=None if context is None else fit_latent_context(context, gemm, gpu),
    )


def fit_tables(directory: Path, gpu: Gpu) -> TableFits:
    """Everything that one GPU's own tables can tell.

    Raises InputError where linear-layer or attention tables are missing or unreadable.
    """
    tables = _Tables(directory)
    gemm = fit_gemm(tables.need("gemm", "gemm"), gpu)
    if WeightDtype.BF16 not in gemm:
        raise InputError(f"{directory}: the newest gemm table has no bfloat16 rows")
    moe, moe_sources = fit_moe(directory, gpu)
    tables.sources += moe_sources
    decode = fit_decode_attention(tables.need("attention", "generation_attention"), gpu)
    context = fit_context_attention(tables.need("attention", "context_attention"), gpu)
    if 2 not in decode or 2 not in context:
        raise InputError(f"{directory}: the newest attention tables have no rows with a bfloat16 KV cache")
    linear = tables.find("linear_attention", "gdn")
    engine, nccl = tables.all("comm", "custom_allreduce"), tables.find("comm", "nccl", "nccl")
    nvlink = gpu.nvlink_bytes_per_s > 0
    link_bytes_per_s = gpu.nvlink_bytes_per_s if nvlink else gpu.pcie_bytes_per_s
    ranks = NVLINK_RANKS if nvlink else PCIE_ENGINE_RANKS
    return TableFits(
        gpu=gpu,
        gemm=gemm,
        moe=moe,
        decode=decode,
        context=context,
        mla=_fit_mla(tables, gemm, gpu),
        linear=None if linear is None else fit_linear_attention(linear, gpu),
        all_reduce=None
        if not engine or nccl is None
        else fit_all_reduce(engine, nccl, link_bytes_per_s, ranks),
        tables=tuple(sorted(tables.sources, key=lambda source: source.path)),
    )


def complete(own: TableFits, everyone: Sequence[TableFits], fitted_on: str) -> OperatorCoefficients:
    """One GPU's coefficients, gaps filled and marked."""
    return OperatorCoefficients(
        gpu=own.gpu.name,
        fitted_on=fitted_on,
        tables=own.tables,
        gemm=complete_gemm(own, everyone),
        moe=complete_moe(own, everyone),
        decode_attention=complete_decode(own),
        context_attention=complete_context(own),
        mla=complete_mla(own, everyone),
        linear_attention=complete_linear(own, everyone),
        nvlink_all_reduce=complete_all_reduce(own, everyone, nvlink=True),
        pcie_all_reduce=complete_all_reduce(own, everyone, nvlink=False),
    )


def fit_operators(
    directory: Path, *, gpus: Mapping[str, Gpu] | None = None, progress: Progress | None = None
) -> tuple[OperatorCoefficients, ...]:
    """Coefficients of every GPU that `directory` has tables of; well under two minutes on two cores.

    `gpus` are datasheets by canonical name, the catalog's where left out. Raises InputError where a table is
    missing or unreadable, or a GPU unknown.
    """
    if gpus is None:
        from planner.catalog.load import gpus as catalog_gpus

        gpus = {gpu.name: gpu for gpu in catalog_gpus()}
    folders = gpu_directories(directory)
    everyone = []
    for done, (name, folder) in enumerate(folders.items()):
        if name not in gpus:
            raise InputError(f"{folder}: no datasheet of {name} in the catalog")
        if progress is not None:
            progress(name, done / len(folders))
        everyone.append(fit_tables(folder, gpus[name]))
    if progress is not None:
        progress("done", 1.0)
    fitted_on = datetime.now(UTC).date().isoformat()
    return tuple(complete(own, everyone, fitted_on) for own in everyone)


def _evidence_of(coefficients: OperatorCoefficients) -> Iterator[tuple[str, str, Evidence]]:
    for dtype, gemm in coefficients.gemm.items():
        yield "linear layer", f"{dtype.value}, up to 256 tokens", gemm.small_evidence
        yield "linear layer", f"{dtype.value}, above", gemm.large_evidence
    for dtype, moe in coefficients.moe.items():
        yield "experts", f"{dtype.value}, tensor parallel", moe.tensor_parallel_evidence
        yield "experts", f"{dtype.value}, expert parallel", moe.expert_parallel_evidence
    for operator, by_bytes in (
        ("decode attention", coefficients.decode_attention),
        ("prompt attention", coefficients.context_attention),
    ):
        for kv_bytes, fits in by_bytes.items():
            for fit in fits:
                scope = "window" if fit.windowed else "full"
                yield operator, f"{8 * kv_bytes}-bit cache, head {fit.head_dim}, {scope}", fit.evidence
    yield "latent attention", "absorbed matmul", coefficients.mla.bmm_evidence
    yield "latent attention", "decode, growth with context", coefficients.mla.decode_evidence
    yield "latent attention", "prompt", coefficients.mla.context_evidence
    yield "linear attention", "decode", coefficients.linear_attention.decode_evidence
    yield "linear attention", "prompt", coefficients.linear_attention.context_evidence
    for link, all_reduce in (
        ("NVLink", coefficients.nvlink_all_reduce),
        ("PCIe", coefficients.pcie_all_reduce),
    ):
        for curve in (*all_reduce.engine, *all_reduce.nccl):
            kernel = f"vLLM {curve.engine_version}" if curve.engine_version else "NCCL"
            yield "all-reduce", f"{link}, {kernel}, {curve.ranks} GPUs", curve.evidence


def fit_report(coefficients: Sequence[OperatorCoefficients]) -> list[FitRow]:
    """One row per GPU, operator and variant: what it rests on and how well it fits."""
    return [
        FitRow(
            gpu=each.gpu,
            operator=operator,
            variant=variant,
            origin=evidence.origin.value,
            rows=evidence.rows,
            median_ratio=evidence.median_ratio,
            p90_ratio=evidence.p90_ratio,
            held_out_median_ratio=evidence.held_out_median_ratio,
            held_out_p90_ratio=evidence.held_out_p90_ratio,
            note=evidence.note,
        )
        for each in coefficients
        for operator, variant, evidence in _evidence_of(each)
    ]
