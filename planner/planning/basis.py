"""What a deployment's prediction rests on: runs of its own, runs of others on its GPU, kernel tables, a sibling's."""

from collections.abc import Sequence

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.evidence import Basis
from planner.domain.hardware import Gpu
from planner.domain.model import Model
from planner.formulas.engine_defaults import engine_rules, parse_version
from planner.formulas.operators import GpuOperators
from planner.formulas.tuning import RunDeployment, run_deployment, runs_of_model

FOUR_BITS = frozenset(
    {WeightDtype.INT4, WeightDtype.AWQ, WeightDtype.GPTQ, WeightDtype.MXFP4, WeightDtype.NVFP4}
)


def has_rough_kernels(model: Model) -> bool:
    """Whether much of its time is in kernels whose forms are least sure: experts, or weights of 4 bits."""
    return model.has_moe or model.weight_dtype in FOUR_BITS


def basis_of(
    model: Model,
    parallelism: Parallelism,
    operators: GpuOperators,
    run: Sequence[RunDeployment],
    engine_version: str = "",
) -> Basis:
    """The best evidence there is for this model on the GPU of `operators`; `run`: what was served and measured.

    Steps that were measured on another release of vLLM make a prediction `calibrated`. A deployment that ran on a
    sibling GPU alone stays `operators`: its ratios are used, but how well they carry over was not measured.
    """
    if operators.basis not in (Basis.OPERATORS, Basis.CALIBRATED):
        return operators.basis
    gpu = operators.gpu.name
    own = run_deployment(model, operators.gpu, parallelism, run, engine_version)
    if own is not None and own.gpu == gpu:
        return Basis.MEASURED if _same_release(own, engine_version) else Basis.CALIBRATED
    return Basis.CALIBRATED if any(one.gpu == gpu for one in run) else Basis.OPERATORS


def _same_release(own: RunDeployment, engine_version: str) -> bool:
    """Whether steps were measured on the release asked for, patches apart; serving runs do not tell theirs."""
    if not own.engine_version:
        return True
    return parse_version(own.engine_version)[:2] == engine_rules(engine_version).version[:2]


def basis_detail(
    model: Model,
    parallelism: Parallelism,
    operators: GpuOperators,
    run: Sequence[RunDeployment],
    engine_version: str = "",
) -> str:
    """The same in words, with the names of what was run and of whose kernel tables are used."""
    tables = f"kernel tables of {operators.donor}"
    if operators.basis is Basis.CALIBRATED:
        tables = f"steps measured on {operators.gpu.name}"
    elif operators.basis is not Basis.OPERATORS:
        tables += f", scaled by datasheet to {operators.gpu.name}"
    own = run_deployment(model, operators.gpu, parallelism, run, engine_version)
    if own is not None and own.steps:
        return f"{tables}: {own.steps:,} of this model, format and TP, vLLM {own.engine_version}"
    if own is not None:
        return f"{tables}; {_runs(own.runs)} of this model, format and TP on {own.gpu}"
    siblings = runs_of_model(model, operators.gpu, parallelism, run, engine_version)
    if siblings:
        degrees = ", ".join(str(tp) for tp in sorted({one.tp for one in siblings}))
        where = ", ".join(sorted({one.gpu for one in siblings}))
        runs = _runs(sum(one.runs for one in siblings))
        return f"{tables}; {runs} of this model and format at TP {degrees} on {where}"
    others = _on(operators.gpu, run)
    if operators.basis is Basis.CALIBRATED:
        return f"{tables}: {sum(one.steps for one in others):,} of other deployments"
    return (
        f"{tables}; {_runs(sum(one.runs for one in others))} of other deployments on it" if others else tables
    )


def _on(gpu: Gpu, run: Sequence[RunDeployment]) -> list[RunDeployment]:
    return [one for one in run if one.gpu == gpu.name]


def _runs(count: int) -> str:
    return f"{count:,} run" if count == 1 else f"{count:,} runs"
