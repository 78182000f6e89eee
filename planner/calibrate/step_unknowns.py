"""What measured steps can tell of a device: factors on its kernels, host time, and one curve for each deployment."""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np

from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.evidence import Basis
from planner.domain.model import Model
from planner.formulas.arrays import FloatArray
from planner.formulas.host_time import NO_HOST_TIME, HostTime
from planner.formulas.operators import UNTUNED, GpuOperators
from planner.formulas.operators.scales import LARGEST_SCALE, LEAST_SCALE, KernelScales, scaled
from planner.formulas.shape_time import ShapeColumns, host_s, shapes_s
from planner.formulas.step import Cluster, StepModel, compile_step

KERNEL_SPREADS: dict[str, float] = {
    "compute": 0.1,
    "weights": 0.1,
    "expert_compute": 0.25,
    "expert_weights": 0.25,
    "launch": 0.4,
    "elementwise": 0.4,
    "decode_cache": 0.15,
    "decode_sequence": 0.5,
    "prompt_pairs": 0.15,
    "prompt_tokens": 0.4,
    "collective": 0.3,
    "dispatch": 0.7,
}
"""Standard deviation of each factor's logarithm where the device has kernel tables: about their held-out errors, and
guesses for what no table times (launch, elementwise)."""
WIDENED: dict[Basis, float] = {Basis.TRANSFERRED: 2.0, Basis.DATASHEET: 3.0}
"""The same for a device with a sibling's tables, or none."""
PLAIN_SPREAD = 2.0
"""Of every factor where efficiencies were assumed (`plain_operators`), but for these."""
PLAIN_SPREADS: dict[str, float] = {"weights": 0.4}
"""How fast memory is read is known beforehand. One model's steps hardly tell its weights from launches and host time,
as all of these are the same in every step, and another model has them in other shares."""
HOST_PRIORS: dict[str, tuple[float, float]] = {
    "sync_step_s": (1e-3, 0.7),
    "sync_per_sequence_s": (3e-5, 1.6),
}
"""0.75 ms and 15 us were measured (calibration/host); the rest are launches and the sampler."""
LOGIT_PRIOR = (1e-10, 2.0)
"""One pass over a row of logits in 32 bit at 40 GB/s."""
CURVE_SPREAD, PLAIN_CURVE_SPREAD = 0.05, 0.2
"""Of a deployment's curve at each knot."""
KNOT_LOG2_STEP = 2
"""A knot at 1, 4, 16, ... tokens."""
MODEL_ERROR, PLAIN_MODEL_ERROR = 0.02, 0.05
"""What a step's logarithm is off beside its noise, however well the unknowns are known."""


class StepDeployment(NamedTuple):
    """One engine as its steps are predicted."""

    name: str
    model: Model
    parallelism: Parallelism
    kv_dtype: KvDtype
    operators: GpuOperators
    """As they are known before the fit."""
    cluster: Cluster
    engine_version: str
    captured_tokens: tuple[int, ...]
    largest_tokens: int
    """Of one step: `max_num_batched_tokens`."""

    @property
    def is_plain(self) -> bool:
        """True where efficiencies were assumed."""
        return not self.operators.coefficients.tables

    @property
    def knots(self) -> tuple[float, ...]:
        """Of its curve, log2 of scheduled tokens."""
        last = log(self.largest_tokens, 2)
        return tuple(float(at) for at in range(0, int(last) + KNOT_LOG2_STEP, KNOT_LOG2_STEP))


class Unknown(NamedTuple):
    """A number to be found: value x exp(x), or a curve's logarithm x, with x of mean 0."""

    name: str
    value: float
    """Before any measurement; 1 for curves, of which exp(x) is taken."""
    spread: float
    """Standard deviation of x before any measurement."""


class Applied(NamedTuple):
    """Unknowns as what they mean."""

    scales: KernelScales
    host: HostTime
    curves: tuple[FloatArray, ...]
    """Log ratios of each deployment at its knots."""


class StepUnknowns(NamedTuple):
    """The vector of unknowns of one device and what its parts mean."""

    kernels: tuple[Unknown, ...]
    host: tuple[Unknown, ...]
    deployments: tuple[StepDeployment, ...]

    @property
    def everything(self) -> tuple[Unknown, ...]:
        """Kernels, host, then the curves of one deployment after the other."""
        curves = tuple(
            Unknown(f"{one.name}: {2 ** int(knot)} tokens", 1.0, curve_spread(one))
            for one in self.deployments
            for knot in one.knots
        )
        return self.kernels + self.host + curves

    @property
    def spreads(self) -> FloatArray:
        """Of each unknown before any measurement [P]."""
        return np.array([one.spread for one in self.everything])

    def applied(self, values: FloatArray) -> Applied:
        """What the vector [P] means."""
        shared = self.kernels + self.host
        numbers = {one.name: one.value * float(np.exp(x)) for one, x in zip(shared, values, strict=False)}
        host = {one.name: numbers.pop(one.name) for one in self.host}
        logit_s = min(numbers.pop("logit_s", 0.0), 1e-3)
        factors = {name: min(max(value, LEAST_SCALE), LARGEST_SCALE) for name, value in numbers.items()}
        curves, at = [], len(shared)
        for one in self.deployments:
            curves.append(values[at : at + len(one.knots)])
            at += len(one.knots)
        scales = KernelScales(logit_s=logit_s, **factors)
        return Applied(scales, NO_HOST_TIME.model_copy(update=host), tuple(curves))

    def steps(self, values: FloatArray) -> tuple[HostTime, tuple[StepModel, ...]]:
        """Host time, and the step model of every deployment."""
        applied = self.applied(values)
        models = tuple(
            tuned_step(one, applied.scales, curve)
            for one, curve in zip(self.deployments, applied.curves, strict=True)
        )
        return applied.host, models

    def log_s(self, values: FloatArray, shapes: Sequence[ShapeColumns]) -> FloatArray:
        """Logarithm of the wall time of every step, those of one deployment after the other [N]."""
        host, models = self.steps(values)
        times = [
            np.log(shapes_s(model, columns, one.captured_tokens) + host_s(host, columns))
            for one, model, columns in zip(self.deployments, models, shapes, strict=True)
        ]
        return np.concatenate(times) if times else np.zeros(0)


def tuned_step(one: StepDeployment, scales: KernelScales, curve: FloatArray) -> StepModel:
    """The step model of a deployment whose kernels take `scales` as long, and whose layers follow `curve`."""
    operators = one.operators
    tuning = UNTUNED
    if curve.any():
        tuning = UNTUNED._replace(log2_tokens=one.knots, log_ratio=tuple(curve.tolist()))
    operators = operators._replace(coefficients=scaled(operators.coefficients, scales), tuning=tuning)
    return compile_step(
        one.model, one.parallelism, one.kv_dtype, operators, one.cluster, engine_version=one.engine_version
    )


def step_unknowns(deployments: Sequence[StepDeployment]) -> StepUnknowns:
    """The unknowns of deployments on one device."""
    first = deployments[0]
    plain = first.is_plain
    widened = WIDENED.get(first.operators.basis, 1.0)
    kernels = [
        Unknown(name, 1.0, PLAIN_SPREADS.get(name, PLAIN_SPREAD) if plain else spread * widened)
        for name, spread in KERNEL_SPREADS.items()
    ]
    if plain:
        kernels.append(Unknown("logit_s", *LOGIT_PRIOR))
    host = tuple(Unknown(name, *prior) for name, prior in HOST_PRIORS.items())
    return StepUnknowns(tuple(kernels), host, tuple(deployments))


def curve_spread(one: StepDeployment) -> float:
    """How far a deployment's curve is expected to be from 1, in logarithms."""
    return PLAIN_CURVE_SPREAD if one.is_plain else CURVE_SPREAD


def model_error(one: StepDeployment) -> float:
    """What its steps are off beside their noise, in logarithms."""
    return PLAIN_MODEL_ERROR if one.is_plain else MODEL_ERROR
