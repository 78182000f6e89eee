"""Tables of `calibrate`: what would be measured, and what was."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from planner.assemble.calibration import Wanted, expected_limits, flags_of
from planner.calibrate.fit_steps import FEWEST_STEPS, MeasuredSteps, StepFit, fit_steps, region_errors
from planner.calibrate.measure.design import (
    FIRST_ASK_S,
    REPETITIONS,
    WARMUPS,
    Plan,
    candidate_shapes,
    forecast,
    next_shapes,
    opening_shapes,
    target_shapes,
)
from planner.calibrate.step_deployment import deployment_of, measured_model
from planner.cli.screen import Json, note, say, show_json, show_table
from planner.domain.calibration import (
    CalibrationRun,
    CalibrationTarget,
    Device,
    EngineSetup,
    ServingPoint,
    StepPoint,
    StepShape,
)
from planner.domain.deployment import Parallelism
from planner.domain.evidence import StepKind
from planner.domain.units import bytes_to_gib, seconds_to_ms
from planner.export.format import percent
from planner.formulas.load_target import load_target
from planner.formulas.operators import GpuOperators
from planner.formulas.weights import weights_bytes

ASSUMED_START_S = {Device.CUDA: 90.0, Device.CPU: 15.0}
"""Import, loading, compilation and graphs, for `--dry-run` alone: an 8B model on a GPU, a tiny one on a CPU."""
SHOWN_SHAPES = 12


def show_grids(
    targets: Sequence[CalibrationTarget],
    wanted: Wanted,
    operators: GpuOperators,
    budget_s: float,
    *,
    as_json: bool,
) -> None:
    """What would be measured of each in its time, and the memory it needs, without starting anything.

    As JSON one object, or a list of them where there are several targets.
    """
    grids = [_show_grid(target, wanted, operators, budget_s, as_json=as_json) for target in targets]
    if as_json:
        show_json(grids[0] if len(grids) == 1 else grids)


def _within(
    shapes: Iterable[StepShape], cost_s: dict[StepShape, float], most_s: float
) -> Iterator[StepShape]:
    """Those that still fit the seconds left, in order."""
    for shape in shapes:
        if cost_s[shape] <= most_s:
            most_s -= cost_s[shape]
            yield shape


def _show_grid(
    target: CalibrationTarget, wanted: Wanted, operators: GpuOperators, budget_s: float, *, as_json: bool
) -> dict[str, Json]:
    limits = expected_limits(target, wanted)
    model = measured_model(target)
    flags = flags_of(model, wanted)
    engine = EngineSetup(
        engine_version="",
        torch_version="",
        python_version="",
        block_size=limits.block_size,
        enforce_eager=wanted.enforce_eager or wanted.device is Device.CPU,
        async_scheduling=False,
        **flags._asdict(),
    )
    shapes = candidate_shapes(limits)
    deployment = deployment_of(target, engine, operators)
    plan = Plan(repetitions=REPETITIONS, warmups=WARMUPS, overhead_s=FIRST_ASK_S)
    expected = forecast(deployment, (), shapes, target=target_shapes(limits))
    start_s = ASSUMED_START_S[wanted.device]
    most_s = max(budget_s - start_s, 0.0) * 0.75
    opening = opening_shapes(shapes)
    telling = next_shapes(shapes, expected, plan, count=len(shapes), most_s=most_s)
    cost_s = dict(zip(shapes, plan.cost_s(expected.step_s).tolist(), strict=True))
    step_s = dict(zip(shapes, expected.step_s.tolist(), strict=True))
    chosen = list(_within(dict.fromkeys([*opening, *telling]), cost_s, most_s))
    weights = weights_bytes(model, Parallelism(tp=target.tp), load_target(operators.gpu, ""))
    found: dict[str, Json] = {
        "model": target.model,
        "gpu": operators.gpu.name,
        "tp": target.tp,
        "budget_s": budget_s,
        "assumed_start_s": start_s,
        "weights_gib_per_gpu": bytes_to_gib(weights),
        "candidate_shapes": len(shapes),
        "shapes": [
            {
                **shape.model_dump(),
                "kind": shape.kind.value,
                "expected_ms": seconds_to_ms(step_s[shape]),
                "measuring_s": cost_s[shape],
            }
            for shape in chosen
        ],
    }
    if as_json:
        return found
    rows = [
        [shape.kind.value, shape.label, f"{seconds_to_ms(step_s[shape]):,.1f}", f"{cost_s[shape]:.2f}"]
        for shape in chosen[:SHOWN_SHAPES]
    ]
    show_table(
        f"{target.model} TP {target.tp} on {operators.gpu.name}: the first {len(rows)} of {len(chosen)} shapes "
        f"({len(shapes)} candidates)",
        ["kind", "step", "expected [ms]", "measuring [s]"],
        rows,
    )
    total_s = sum(cost_s[shape] for shape in chosen)
    say(
        f"Weights {bytes_to_gib(weights):.2f} GiB a GPU; about {start_s:.0f} s to start the engine (assumed), "
        f"{total_s:.0f} s of steps, the rest of {budget_s:.0f} s for serving runs."
    )
    say("Expected times come from what is known before; the real order follows what is measured.")
    return found


def show_runs(runs: Sequence[tuple[Path, CalibrationRun]], operators: GpuOperators, *, as_json: bool) -> None:
    """What calibrations found, each with how well a fit to it alone predicts its own steps.

    As JSON one object, or a list of them where there are several runs; nothing where there is none.
    """
    if as_json and runs:
        shown = [_run_json(path, run, operators) for path, run in runs]
        show_json(shown[0] if len(shown) == 1 else shown)
        return
    for path, run in runs:
        _show_run(path, run, operators)


def _run_json(path: Path, run: CalibrationRun, operators: GpuOperators) -> dict[str, Json]:
    fit, measured = _fit_of(run, operators)
    return {
        "run": str(path),
        "model": run.target.model,
        "end": run.end.value,
        "end_reason": run.end_reason,
        "points": len(run.points),
        "measured_shapes": len(run.measured),
        "failed_points": sum(bool(point.failed) for point in run.points),
        "disturbed_shapes": sum(bool(point.disturbed) for point in run.measured),
        "serving_runs": sum(bool(point.requests) for point in run.serving),
        "notes": list(run.notes),
        "regions": [] if fit is None else [row.model_dump() for row in region_errors(measured, fit)],
    }


def _show_run(path: Path, run: CalibrationRun, operators: GpuOperators) -> None:
    fit, measured = _fit_of(run, operators)
    _show_memory(run)
    if fit is not None:
        rows = [
            [
                row.region,
                str(row.steps),
                percent(row.before_median_ratio),
                percent(row.median_ratio),
                percent(row.left_out_median_ratio),
            ]
            for row in region_errors(measured, fit)
        ]
        show_table(
            "|predicted / measured - 1| of steps, medians",
            ["steps", "shapes", "before", "fitted", "left out"],
            rows,
        )
    _show_kinds(run.measured)
    _show_serving([point for point in run.serving if point.requests])
    for line in run.notes:
        note(line)
    say(f"Fit it with `python -m planner fit runs {path.parent}`.")


def _fit_of(run: CalibrationRun, operators: GpuOperators) -> tuple[StepFit | None, tuple[MeasuredSteps, ...]]:
    if run.engine is None or len(run.measured) < FEWEST_STEPS:
        return None, ()
    measured = (MeasuredSteps(deployment_of(run.target, run.engine, operators), run.measured),)
    return fit_steps(measured), measured


def _show_memory(run: CalibrationRun) -> None:
    memory = run.memory
    if memory is None:
        return
    named = {
        "weights": memory.weights_bytes,
        "activation peak": memory.activation_peak_bytes,
        "outside torch": memory.non_torch_bytes,
        "CUDA graphs": memory.cuda_graph_bytes,
        "KV cache": memory.kv_cache_bytes,
    }
    rows = [
        [name, "not said" if size is None else f"{bytes_to_gib(size):.3f}"] for name, size in named.items()
    ]
    tokens = memory.kv_cache_tokens
    rows.append(["KV cache [tokens]", "not said" if tokens is None else f"{tokens:,}"])
    show_table("Memory of one device, as the engine says", ["", "GiB"], rows)


def _show_kinds(points: Sequence[StepPoint]) -> None:
    rows = []
    for kind in StepKind:
        mine = [point for point in points if point.shape.kind is kind]
        if mine:
            watts = [
                one.telemetry.power_w_mean
                for one in mine
                if one.telemetry is not None and one.telemetry.power_w_mean is not None
            ]
            rows.append(
                [
                    kind.value,
                    str(len(mine)),
                    f"{seconds_to_ms(min(point.median_s for point in mine)):,.2f}",
                    f"{seconds_to_ms(max(point.median_s for point in mine)):,.2f}",
                    percent(median(point.spread_ratio for point in mine)),
                    str(sum(bool(point.disturbed) for point in mine)),
                    f"{median(watts):,.0f}" if watts else "",
                ]
            )
    headers = ["steps", "shapes", "shortest [ms]", "longest [ms]", "spread", "disturbed", "power [W]"]
    show_table("Measured", headers, rows)


def _show_serving(points: Sequence[ServingPoint]) -> None:
    rows = []
    for point in points:
        tpot_s, telemetry = point.tpot_s_mean, point.telemetry
        tokens = sum(one.output_tokens for one in point.requests)
        energy_j = None if telemetry is None else telemetry.energy_j
        rows.append(
            [
                f"{point.load.concurrency}",
                f"{point.load.input_tokens:,} + {point.load.output_tokens:,}",
                str(len(point.requests)),
                f"{seconds_to_ms(point.ttft_s_mean):,.1f}",
                "" if tpot_s is None else f"{seconds_to_ms(tpot_s):,.2f}",
                "" if energy_j is None else f"{energy_j / tokens:.2f}",
            ]
        )
    if rows:
        headers = ["users", "tokens", "requests", "TTFT [ms]", "TPOT [ms]", "J per token"]
        show_table("Served in the engine's process", headers, rows)
