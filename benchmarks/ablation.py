"""What each ingredient of a simulated latency is worth: errors on measured runs as ingredients are added.

`python -m benchmarks.ablation RUNS.csv` prints median / 90th percentile of |predicted / measured - 1| in %. Nothing is
fitted here: the numbers are those shipped, so later rows are in sample; `fit serving RUNS.csv` leaves parts out.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from planner.assemble.question import facts_for
from planner.assemble.served import Means, Runnable, relative_errors, runnable
from planner.cli.measured_runs import measured_serving_runs
from planner.cli.screen import say, show_markdown
from planner.domain.base import Frozen
from planner.formulas.arrays import FloatArray
from planner.formulas.host_time import NO_HOST_TIME, HostTime
from planner.formulas.operators import GpuOperators
from planner.formulas.relief import at_datasheet_rates
from planner.formulas.tuning import NO_TUNING, ServingTuning

Change = Callable[[GpuOperators], GpuOperators]


class Ingredients(NamedTuple):
    """What a prediction is made of."""

    what: str
    operators: Change
    host: HostTime
    tuning: ServingTuning


def _as_fitted(ops: GpuOperators) -> GpuOperators:
    return ops


def _without_corrections(ops: GpuOperators) -> GpuOperators:
    """The forms alone: no surface over shapes, no correction by message size."""
    plain = {dtype: fit.model_copy(update={"surface": None}) for dtype, fit in ops.coefficients.gemm.items()}
    return ops._replace(
        coefficients=ops.coefficients.model_copy(
            update={
                "gemm": plain,
                "nvlink_all_reduce": _smooth(ops.coefficients.nvlink_all_reduce),
                "pcie_all_reduce": _smooth(ops.coefficients.pcie_all_reduce),
            }
        )
    )


def _smooth(fit: Frozen) -> Frozen:
    """All-reduce curves without what they leave at single sizes."""
    nothing = {"log2_bytes": (), "log_ratio": ()}
    return fit.model_copy(
        update={
            kind: tuple(curve.model_copy(update=nothing) for curve in getattr(fit, kind))
            for kind in ("engine", "nccl")
        }
    )


def ladder(host: HostTime, tuning: ServingTuning) -> list[Ingredients]:
    """From the datasheet to everything."""
    slowed = tuning.model_copy(update={"deployments": ()})
    return [
        Ingredients("roofline at the datasheet's rates", at_datasheet_rates, NO_HOST_TIME, NO_TUNING),
        Ingredients("operator forms", _without_corrections, NO_HOST_TIME, NO_TUNING),
        Ingredients("and their corrections by shape", _as_fitted, NO_HOST_TIME, NO_TUNING),
        Ingredients("and sustained clocks, ranks that wait", _as_fitted, NO_HOST_TIME, slowed),
        Ingredients("and host and front-end time", _as_fitted, host, slowed),
        Ingredients("and the ratios of deployments that were run", _as_fitted, host, tuning),
    ]


def errors(runs: Sequence[Runnable], made_of: Ingredients) -> Means:
    """Predicted / measured - 1 of each run."""
    changed = [
        one._replace(placed=one.placed._replace(operators=made_of.operators(one.placed.operators)))
        for one in runs
    ]
    return relative_errors(changed, made_of.host, made_of.tuning)


def _spread(found: FloatArray) -> str:
    size = np.abs(found)
    return f"{100 * np.median(size):.1f} / {100 * np.quantile(size, 0.9):.0f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("measured", type=Path, metavar="RUNS.csv")
    facts = facts_for()
    found, _others = measured_serving_runs(parser.parse_args().measured)
    runs = runnable(found, facts)
    lines = []
    for made_of in ladder(facts.host, facts.tuning):
        means = errors(runs, made_of)
        bias = 100 * float(np.median(means.tpot))
        lines.append([made_of.what, _spread(means.tpot), f"{bias:+.0f}", _spread(means.ttft)])
    say(f"{len(runs)} runs")
    show_markdown(["prediction", "TPOT", "bias", "TTFT"], lines)


if __name__ == "__main__":
    main()
