"""Serving runs of a made-up world: a sweep of deployments, with the times that known numbers give them."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.fit_serving import deployment_name
from planner.assemble.question import facts_for
from planner.assemble.served import MeasuredRun, Runnable, runnable, simulated
from planner.domain.workload import Workload
from planner.formulas.host_time import HostTime
from planner.formulas.tuning import RunDeployment, ServingTuning, model_shape

MODELS = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-14B")
DEGREES = (1, 4)
LOADS = ((200, 2), (200, 48), (4000, 2), (4000, 24))
"""Prompt tokens and users: short and long, few and many."""
HOST = HostTime(
    step_s=3e-4,
    per_sequence_s=1.2e-5,
    sync_step_s=2.5e-3,
    sync_per_sequence_s=6e-5,
    chain_s=1.3e-3,
    chain_per_sequence_s=1.5e-5,
    front_s=2e-3,
    front_per_token_s=4e-6,
    reply_s=6e-3,
    reply_per_user_s=2e-4,
)
"""All that is fitted lies well away from what it is drawn to."""


def unmeasured(ways: Sequence[bool] = (True, False), *, says_batch: bool = True) -> list[Runnable]:
    """A sweep of models, degrees, ways of scheduling (asynchronous or not) and loads; times not yet known."""
    runs = []
    for model, tp, is_async, (prompt, users) in product(MODELS, DEGREES, ways, LOADS):
        engine = Engine(max_model_len=8192, async_scheduling=is_async)
        case = deployment(model, gpu_named("H100-SXM-80GB"), parallelism_of(tp), Formats(), engine)
        workload = Workload(
            input_tokens=prompt,
            output_tokens=100,
            length_low_ratio=0.8,
            concurrency=users,
            num_requests=12 * users,
        )
        runs.append(MeasuredRun(case._replace(workload=workload), 1.0, 1.0, says_batch))
    return runnable(runs, facts_for())


def tuning_of(
    runs: Sequence[Runnable], ratios: Sequence[tuple[float, float]], sustained_slowdown: float = 0.1
) -> ServingTuning:
    """Decode and prompt ratios of each deployment, in the order in which they come; ranks wait 2 us for each other."""
    names = [deployment_name(one) for one in runs]
    first = [runs[names.index(name)].run.case for name in dict.fromkeys(names)]
    return ServingTuning(
        sustained_slowdown=sustained_slowdown,
        rank_wait_s=2e-6,
        deployments=tuple(
            RunDeployment(
                model_shape=model_shape(case.model),
                weight_dtype=case.model.weight_dtype,
                gpu=case.gpu.name,
                gpu_architecture=case.gpu.architecture,
                tp=case.parallelism.tp,
                runs=len(runs) // len(first),
                decode_ratio=decode,
                prompt_ratio=prompt,
            )
            for case, (decode, prompt) in zip(first, ratios, strict=True)
        ),
    )


def measured_in(
    runs: Sequence[Runnable], host: HostTime, tuning: ServingTuning, noise: float = 0.0
) -> list[Runnable]:
    """The runs with the times that this world shows, each off by a random factor."""
    means, random = simulated(runs, host, tuning), np.random.default_rng(3)
    factors = np.exp(noise * random.standard_normal((2, len(runs))))
    return [
        one._replace(run=one.run._replace(ttft_s=float(ttft), tpot_s=float(tpot)))
        for one, ttft, tpot in zip(runs, means.ttft * factors[0], means.tpot * factors[1], strict=True)
    ]
