"""The engine of a calibration as its steps are predicted."""

from collections.abc import Sequence
from pathlib import Path

from planner.calibrate.plain_operators import plain_operators
from planner.calibrate.step_unknowns import StepDeployment
from planner.calibrate.store import table_operators_for
from planner.catalog.load import find_gpu
from planner.catalog.model_config import parse_model, with_weight_dtype
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, CalibrationTarget, EngineSetup, Machine
from planner.domain.deployment import Parallelism
from planner.domain.hardware import Gpu, Interconnect
from planner.domain.model import Model
from planner.formulas.engine_defaults import parse_version
from planner.formulas.operators import GpuOperators
from planner.formulas.step import Cluster


def measured_gpu(machine: Machine) -> Gpu:
    """The datasheet of the device that was measured. Raises InputError where neither run nor catalog has one."""
    return machine.datasheet if machine.datasheet is not None else find_gpu(machine.gpu)


def measured_model(target: CalibrationTarget) -> Model:
    """The model that was measured, in the format it ran in."""
    model = parse_model(target.config, name=target.model, hf_quant=target.hf_quant)
    return with_weight_dtype(model, target.weight_dtype)


def operators_before(machine: Machine, directories: Sequence[Path]) -> GpuOperators:
    """What is known of the device's kernels without any run: tables, a sibling's, or typical efficiencies."""
    gpu = measured_gpu(machine)
    return plain_operators(gpu) if machine.datasheet is not None else table_operators_for(gpu, directories)


def deployment_name(target: CalibrationTarget, model: Model) -> str:
    """Model, format and TP."""
    return f"{target.model} {model.weight_dtype.value} TP {target.tp}"


def step_deployment(run: CalibrationRun, directories: Sequence[Path]) -> StepDeployment:
    """The run's engine, with what is known of its device's kernels without any run.

    Raises:
        InputError: the engine never started, or the run's model or device is not understood.
    """
    if run.engine is None:
        raise InputError(f"{run.run_id}: its engine never started, so there is nothing to fit")
    try:
        parse_version(run.engine.engine_version)
        return deployment_of(run.target, run.engine, operators_before(run.machine, directories))
    except InputError as error:
        raise InputError(f"{run.run_id}: {error}") from None


def deployment_of(target: CalibrationTarget, engine: EngineSetup, operators: GpuOperators) -> StepDeployment:
    """The same from its parts."""
    model = measured_model(target)
    return StepDeployment(
        name=deployment_name(target, model),
        model=model,
        parallelism=Parallelism(tp=target.tp),
        kv_dtype=target.kv_dtype,
        operators=operators,
        cluster=Cluster(_interconnect(operators.gpu, target.tp), 0.0),
        engine_version=engine.engine_version,
        captured_tokens=tuple(sorted(engine.cuda_graph_sizes)),
        largest_tokens=engine.max_num_batched_tokens,
    )


def _interconnect(gpu: Gpu, tp: int) -> Interconnect:
    """Assumed: a run does not tell how its GPUs are wired."""
    if tp == 1:
        return Interconnect.NONE
    if not gpu.nvlink_bytes_per_s:
        return Interconnect.PCIE
    return Interconnect.NVLINK_PAIR if gpu.has_nvlink_bridges else Interconnect.NVSWITCH
