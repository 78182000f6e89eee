"""Times every step that `calibrate` could choose, and others drawn at random, on a live vLLM engine (CPU).

Runs with the interpreter that has vLLM, not with ours:

    .venv-engine/bin/python -m benchmarks.engine_steps --model config.json --out benchmarks/data/steps.json

One file comes out, as `calibrate` writes its runs, for benchmarks/calibration.py to choose from. The order is random;
disturbed points are measured again, and the least disturbed measurement of each shape is kept. The same command on a
file that is there goes on with the shapes that are still disturbed in it. Of the sensors the seconds that a
measurement took are kept, and how much others used the cores.
"""

import argparse
import json
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

from planner import __version__
from planner.assemble.calibration import Wanted, engine_start, target_of, write_config
from planner.calibrate.measure.design import EngineLimits, candidate_shapes
from planner.calibrate.measure.engine_process import EngineProcess
from planner.calibrate.measure.engine_protocol import Failed, Measure, Measured
from planner.calibrate.measure.machine import describe, nominal_gpu
from planner.calibrate.measure.probe import Probe, watch
from planner.calibrate.measure.session import now
from planner.calibrate.measure.telemetry import disturbances
from planner.catalog.atomic import write_text
from planner.catalog.calibration_runs import read_run
from planner.cli.screen import note
from planner.domain.calibration import CalibrationRun, Device, RunEnd, StepPoint, StepShape
from planner.domain.evidence import StepKind

REPETITIONS, WARMUPS = 5, 1
EXAM_SHAPES, EXAM_SEED = 120, 7
MOST_ATTEMPTS = 2
QUIET_S, QUIET_RATIO = 0.2, 0.08
WIDE_SPREAD_RATIO = 0.1
DIGITS = 6


def limits_of(run: CalibrationRun) -> EngineLimits:
    """What the engine of a run can be asked for."""
    assert run.engine is not None
    assert run.memory is not None
    return EngineLimits(
        max_model_len=run.engine.max_model_len,
        max_num_seqs=run.engine.max_num_seqs,
        max_num_batched_tokens=run.engine.max_num_batched_tokens,
        kv_cache_tokens=run.memory.kv_cache_tokens or run.engine.max_model_len,
        block_size=run.engine.block_size,
    )


def exam_shapes(limits: EngineLimits) -> tuple[StepShape, ...]:
    """Shapes drawn evenly in logarithms over all that the engine takes: prompts, decoding and both in turn."""
    drawn = _drawn(limits, Random(EXAM_SEED))
    known, found = set(candidate_shapes(limits)), dict[StepShape, None]()
    while len(found) < EXAM_SHAPES:
        shape = next(drawn)
        if limits.allows(shape) and shape not in known:
            found[shape] = None
    return tuple(found)


def _drawn(limits: EngineLimits, random: Random) -> Iterator[StepShape]:
    def size(low: int, high: int) -> int:
        return round(low * (high / low) ** random.random())

    for kind in cycle(StepKind):
        prompts = 0 if kind is StepKind.DECODE else size(1, 16)
        decodes = 0 if kind is StepKind.PREFILL else size(1, limits.max_num_seqs)
        yield StepShape(
            prompts=prompts,
            prompt_tokens=size(16, limits.max_num_batched_tokens) if prompts else 0,
            past_tokens=size(16, limits.max_model_len) if prompts and random.random() < 0.5 else 0,
            decodes=decodes,
            context_tokens=size(16, limits.max_model_len) if decodes else 0,
        )


def measured_point(engine: EngineProcess, probe: Probe, shape: StepShape, attempt: int) -> StepPoint:
    """The shape measured, or why it was not."""
    question = Measure(shape=shape, repetitions=REPETITIONS, warmups=WARMUPS)
    mark = probe.mark()
    answer = engine.ask(question, timeout_s=600.0)
    telemetry = probe.since(mark)
    if not isinstance(answer, Measured):
        why = answer.message if isinstance(answer, Failed) else "no times came"
        return StepPoint(shape=shape, measured_at=now(), attempt=attempt, failed=why, telemetry=telemetry)
    point = StepPoint(
        shape=shape,
        times_s=tuple(round(one, DIGITS) for one in answer.times_s),
        warmup_s=tuple(round(one, DIGITS) for one in answer.warmup_s),
        measured_at=now(),
        attempt=attempt,
        disturbed=disturbances(telemetry, ()),
        telemetry=telemetry,
    )
    if point.spread_ratio > WIDE_SPREAD_RATIO:
        wide = f"repetitions differ by {point.spread_ratio:.0%}"
        point = point.model_copy(update={"disturbed": (*point.disturbed, wide)})
    return point


class Patience(NamedTuple):
    """How long to wait for a machine that nobody else uses."""

    probe: Probe
    until_s: float
    """Of the monotonic clock; after that a busy machine is taken as it is."""

    def wait(self) -> None:
        """Until others have left the cores alone for a moment."""
        while time.monotonic() < self.until_s:
            mark = self.probe.mark()
            time.sleep(QUIET_S)
            if (self.probe.since(mark).other_use_ratio or 0.0) < QUIET_RATIO:
                return


def measured_points(
    engine: EngineProcess, patience: Patience, shapes: Sequence[StepShape], random: Random
) -> Iterator[StepPoint]:
    """All shapes in random order; then the disturbed ones again, up to so many times."""
    waiting = list(shapes)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        random.shuffle(waiting)
        disturbed = []
        for shape in waiting:
            patience.wait()
            point = measured_point(engine, patience.probe, shape, attempt)
            yield point
            if point.disturbed:
                disturbed.append(shape)
        note(f"round {attempt}: {len(waiting)} shapes, {len(disturbed)} of them disturbed")
        waiting = disturbed


def small(point: StepPoint) -> StepPoint:
    """The point without sensors that nothing here reads."""
    assert point.telemetry is not None
    kept = point.telemetry
    return point.model_copy(
        update={
            "telemetry": kept.__class__(
                seconds=round(kept.seconds, DIGITS),
                samples=kept.samples,
                other_use_ratio=None if kept.other_use_ratio is None else round(kept.other_use_ratio, 3),
            )
        }
    )


def least_disturbed(points: Sequence[StepPoint]) -> list[StepPoint]:
    """One measurement of each shape: of those with the fewest disturbances the one whose cores others used least."""

    def disturbed(point: StepPoint) -> tuple[int, float]:
        assert point.telemetry is not None
        return len(point.disturbed), point.telemetry.other_use_ratio or 0.0

    best: dict[StepShape, StepPoint] = {}
    for point in points:
        known = best.get(point.shape)
        if point.times_s and (known is None or disturbed(point) < disturbed(known)):
            best[point.shape] = point
    return list(best.values())


def begun(model: str, wanted: Wanted) -> CalibrationRun:
    """An empty record of this machine."""
    target = target_of(model, wanted)
    name = Path(target.model).stem
    described = describe(Device.CPU, ())
    sheet = nominal_gpu(described.machine, described.silicon, as_of=datetime.now(UTC).date().isoformat())
    return CalibrationRun(
        run_id=f"steps-{name}",
        planner_version=__version__,
        started_at=now(),
        budget_s=0.0,
        seed=wanted.seed,
        target=target.model_copy(update={"model": name}),
        machine=described.machine.model_copy(update={"datasheet": sheet}),
    )


def recorded(run: CalibrationRun, wanted: Wanted, log: Path, wait_s: float) -> CalibrationRun:
    """Starts the engine and measures what the run lacks or has disturbed; Ctrl-C keeps what there is."""
    points = list(run.points)
    with TemporaryDirectory() as folder, EngineProcess(log) as engine:
        write_config(run.target, Path(folder))
        with watch(Device.CPU, own_pids=lambda: (engine.pid,) if engine.pid else ()) as probe:
            answer = engine.start(engine_start(run.target, wanted, folder))
            if isinstance(answer, Failed):
                raise SystemExit(answer.message)
            run = run.model_copy(update={"engine": answer.engine, "memory": answer.memory})
            limits = limits_of(run)
            known = {point.shape for point in points if not point.disturbed}
            shapes = [one for one in (*candidate_shapes(limits), *exam_shapes(limits)) if one not in known]
            patience = Patience(probe, time.monotonic() + wait_s)
            try:
                for point in measured_points(engine, patience, shapes, Random(f"{wanted.seed} {len(known)}")):
                    points.append(small(point))
            except KeyboardInterrupt:
                note("interrupted; what was measured is kept")
    return run.model_copy(
        update={
            "points": tuple(sorted(least_disturbed(points), key=lambda point: point.measured_at)),
            "ended_at": now(),
            "end": RunEnd.FINISHED,
        }
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a config.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="of the engine's kernels")
    parser.add_argument("--wait", type=float, default=300.0, help="for a quiet machine, in all [s]")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = Wanted(device=Device.CPU, threads=options.threads)
    before = read_run(options.out) if options.out.exists() else begun(options.model, wanted)
    run = recorded(before, wanted, options.out.with_suffix(".log"), options.wait)
    kept = {"format": run.format} | run.model_dump(mode="json", exclude_defaults=True)
    write_text(options.out, one_point_a_line(kept))
    note(
        f"{options.out}: {len(run.points)} shapes, {sum(bool(one.disturbed) for one in run.points)} disturbed"
    )


def one_point_a_line(run: dict[str, object]) -> str:
    """JSON that stays small and can be compared line by line."""
    points = run.pop("points")
    assert isinstance(points, list)
    head = json.dumps(run, indent=1, ensure_ascii=False, allow_nan=False).rstrip().removesuffix("}").rstrip()
    lines = ",\n".join("  " + json.dumps(point, separators=(",", ":")) for point in points)
    return f'{head},\n "points": [\n{lines}\n ]\n}}\n'


if __name__ == "__main__":
    main()
