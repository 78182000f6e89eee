"""What served runs say of kernel times: one slowdown for all, and ratios for models that were run."""

from collections.abc import Iterable
from math import exp, log
from statistics import fmean

from pydantic import Field, model_validator

from planner.domain.base import Frozen
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Gpu
from planner.domain.model import Model
from planner.formulas.engine_defaults import engine_rules
from planner.formulas.operators import UNTUNED, StepTuning


class RunDeployment(Frozen):
    """A model that was served and measured."""

    model_shape: str
    """As `model_shape` names it: checkpoints that differ in their weights alone share it."""
    weight_dtype: WeightDtype
    gpu: str
    gpu_architecture: str
    tp: int = Field(ge=1)
    expert_kernel: str = ""
    """Where a release chose another kernel than its successors do: its ratios say nothing of theirs."""
    runs: int = Field(ge=0)
    decode_ratio: float = Field(gt=0.2, lt=5)
    """Measured / predicted time of steps that only decode."""
    prompt_ratio: float = Field(gt=0.2, lt=5)
    """The same of steps with long prompts."""
    steps: int = Field(default=0, ge=0)
    """Steps measured one by one."""
    log2_tokens: tuple[float, ...] = ()
    log_ratio: tuple[float, ...] = ()
    """What they say of its layers, as `StepTuning` has it."""
    engine_version: str = ""
    """Of the steps; empty where serving runs do not tell."""

    @model_validator(mode="after")
    def _was_run(self) -> "RunDeployment":
        if not self.runs + self.steps:
            raise ValueError("a deployment that was run has at least one run or step")
        if len(self.log2_tokens) != len(self.log_ratio):
            raise ValueError(f"{len(self.log2_tokens)} knots with {len(self.log_ratio)} ratios")
        return self


class ServingTuning(Frozen):
    """All that serving runs tell of kernel times."""

    sustained_slowdown: float = Field(default=0.0, ge=0, lt=2)
    rank_wait_s: float = Field(default=0.0, ge=0, lt=1e-3)
    deployments: tuple[RunDeployment, ...] = ()


NO_TUNING = ServingTuning()


def model_shape(model: Model) -> str:
    """What tells a model's kernels apart.

    >>> fields = {"architecture": "LlamaForCausalLM", "layer_pattern": (0,) * 80, "hidden": 8192, "vocab": 9}
    >>> model_shape(Model.model_construct(**fields))
    'LlamaForCausalLM, 80 layers of 8192, vocabulary 9'
    """
    return (
        f"{model.architecture}, {len(model.layer_pattern)} layers of {model.hidden}, vocabulary {model.vocab}"
    )


def expert_kernel(model: Model, gpu: Gpu, engine_version: str) -> str:
    """`marlin` where a release runs mxfp4 experts through it on Hopper, else empty."""
    mxfp4 = model.weight_dtype is WeightDtype.MXFP4 and gpu.is_hopper
    return "marlin" if mxfp4 and engine_rules(engine_version).marlin_mxfp4_on_hopper else ""


def runs_of_model(
    model: Model,
    gpu: Gpu,
    parallelism: Parallelism,
    known: Iterable[RunDeployment],
    engine_version: str = "",
) -> tuple[RunDeployment, ...]:
    """Measured deployments of this model and format on GPUs of this architecture, which run the same kernels."""
    if parallelism.pp * parallelism.dp > 1 or parallelism.ep:
        return ()
    shape, kernel = model_shape(model), expert_kernel(model, gpu, engine_version)
    known = tuple(known)
    stepwise = was_measured(gpu, known)
    return tuple(
        one
        for one in known
        # Curves of steps belong to the factors of one GPU, ratios of serving runs to its kernel tables.
        if ((one.steps > 0 and one.gpu == gpu.name) if stepwise else one.steps == 0)
        and one.model_shape == shape
        and one.weight_dtype is model.weight_dtype
        and one.gpu_architecture == gpu.architecture
        and one.expert_kernel == kernel
    )


def was_measured(gpu: Gpu, known: Iterable[RunDeployment]) -> bool:
    """Whether steps were measured one by one on this GPU, so that its kernels follow them and not their tables."""
    return any(one.steps > 0 and one.gpu == gpu.name for one in known)


def run_deployment(
    model: Model,
    gpu: Gpu,
    parallelism: Parallelism,
    known: Iterable[RunDeployment],
    engine_version: str = "",
) -> RunDeployment | None:
    """The measured deployment with this TP, on this GPU or else on another of its architecture."""
    of_model = runs_of_model(model, gpu, parallelism, known, engine_version)
    same = [one for one in of_model if one.tp == parallelism.tp]
    return next((one for one in same if one.gpu == gpu.name), same[0] if same else None)


def step_tuning(
    model: Model, gpu: Gpu, parallelism: Parallelism, tuning: ServingTuning, engine_version: str = ""
) -> StepTuning:
    """What applies to one deployment.

    A model that was run with other TPs keeps the mean of their decode ratios: what reading its weights takes more or
    less than its kernels' forms say hardly depends on how they are sliced. Its prompts are computed in other shapes.
    """
    plain = StepTuning(tuning.sustained_slowdown, tuning.rank_wait_s)
    if was_measured(gpu, tuning.deployments):
        plain = UNTUNED
    found = run_deployment(model, gpu, parallelism, tuning.deployments, engine_version)
    if found is not None:
        return plain._replace(
            decode_ratio=found.decode_ratio,
            prompt_ratio=found.prompt_ratio,
            log2_tokens=found.log2_tokens,
            log_ratio=found.log_ratio,
        )
    others = runs_of_model(model, gpu, parallelism, tuning.deployments, engine_version)
    if not others:
        return plain
    return plain._replace(decode_ratio=exp(fmean(log(one.decode_ratio) for one in others)))
